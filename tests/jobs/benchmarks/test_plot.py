"""Plots of measurements show all points, bars and texts, and are written as PNG."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from jobs.benchmarks.growth import Growth, Point, fit_growth
from jobs.benchmarks.measure import Comparison
from jobs.benchmarks.plot import (
    BASELINE,
    FASTER,
    SLOWER,
    bytes_text,
    comparison_figure,
    draw_comparisons,
    draw_growth,
    growth_figure,
    seconds_text,
)

pytest.importorskip("matplotlib")


def growth_of_tokens(*, peak: bool = True) -> Growth:
    points = [
        Point(
            x=x,
            seconds={"unet": 1e-6 * x**2, "decide": 0.2, "total": 1e-6 * x**2 + 0.2},
            peak=30_000 * x if peak else None,
            peaks={},
        )
        for x in (1024, 4096, 16384)
    ]
    return fit_growth("tokens", points)


def comparison(case: str = "9 regions") -> Comparison:
    seconds = {"plain": [1.0, 1.0, 1.0], "ours": [0.25, 0.2, 0.3], "slow": [2.0, 2.0, 2.0]}
    return Comparison(part="merging", case=case, seconds=seconds, baseline="plain")


def test_growth_has_a_row_each_with_seconds_on_the_left_and_memory_on_the_right() -> None:
    left, right, second_left, second_right = growth_figure([growth_of_tokens(), growth_of_tokens(peak=False)]).axes
    for axes in (left, second_left):
        curves = {line.get_label().split()[0]: line.get_xydata().tolist() for line in axes.get_lines()}
        assert set(curves) == {"total", "unet", "decide"}
        assert curves["unet"] == [[x, 1e-6 * x**2] for x in (1024, 4096, 16384)]
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1,024", "4,096", "16,384"]
    assert "$x^{2.00}$" in left.get_lines()[1].get_label()
    (memory,) = right.get_lines()
    assert memory.get_ydata().tolist() == [30_000 * x for x in (1024, 4096, 16384)]
    assert not second_right.get_visible(), "no panel where the peak is not known"


def test_a_constant_cost_spans_at_least_a_decade() -> None:
    points = [Point(x=x, seconds={"total": 0.3}, peak=10**7, peaks={}) for x in (1, 2, 4)]
    low, high = growth_figure([fit_growth("batch", points)]).axes[0].get_ylim()
    assert high / low >= 9.9


def test_bars_are_as_long_as_their_seconds_and_their_texts_give_ratio_and_range() -> None:
    (axes,) = comparison_figure([comparison()]).axes
    bars = {bar.get_width(): bar.get_facecolor() for bar in axes.patches}
    assert list(bars) == [1.0, 0.25, 2.0]
    assert [_hexadecimal(colour) for colour in bars.values()] == [BASELINE, FASTER, SLOWER]
    assert [text.get_text() for text in axes.texts] == [
        "1 s",
        "250 ms   0.25x  (0.20 to 0.30)",
        "2 s   2.00x  (2.00 to 2.00)",
    ]
    assert axes.get_lines()[0].get_xdata().tolist() == pytest.approx([0.2, 0.3])


def _hexadecimal(colour: tuple[float, ...]) -> str:
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in colour[:3])


def test_every_comparison_has_a_panel_and_the_picture_grows_with_them() -> None:
    one, three = comparison_figure([comparison()]), comparison_figure([comparison(case) for case in "abc"])
    assert [axes.get_title(loc="left") for axes in three.axes] == [f"merging: {case}" for case in "abc"]
    assert three.get_figheight() > one.get_figheight() * 2


@pytest.mark.parametrize("picture", ["growth", "bars"])
def test_pictures_are_png_with_the_same_bytes_every_time(picture: str, tmp_path: Path) -> None:
    for name in ("first.png", "second.png"):
        if picture == "growth":
            draw_growth([growth_of_tokens()], tmp_path / name)
        else:
            draw_comparisons([comparison()], tmp_path / name)
    with Image.open(tmp_path / "first.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 100
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


@pytest.mark.parametrize(
    ("formatted", "expected"),
    [
        (seconds_text(1.2345), "1.23 s"),
        (seconds_text(0.02), "20 ms"),
        (seconds_text(0.9999), "1 s"),
        (seconds_text(3e-7), "0.3 us"),
        (bytes_text(4 * 128**4), "1.07 GB"),
        (bytes_text(30e6), "30 MB"),
        (bytes_text(999_900), "1 MB"),
    ],
)
def test_values_have_three_digits_and_a_unit(formatted: str, expected: str) -> None:
    assert formatted == expected
