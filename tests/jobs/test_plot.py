"""Pictures of measurements are written whole, whatever there is to draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.benchmarks.growth import Growth, Point, fit_growth
from jobs.benchmarks.measure import Comparison
from jobs.benchmarks.plot import (
    BASELINE,
    FASTER,
    ROW_HEIGHT,
    SLOWER,
    WIDTH,
    bytes_text,
    draw_comparisons,
    draw_growth,
    seconds_text,
)


def a_growth(*, peak: bool = True) -> Growth:
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


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def inked(pixels: np.ndarray) -> float:
    """Share of pixels that are not paper."""
    return float((pixels.min(axis=-1) < 200).mean())


def colour_share(pixels: np.ndarray, colour: str) -> float:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((np.abs(pixels - wanted).max(axis=-1) < 8).mean())


def test_growth_has_a_row_for_each_and_memory_beside(tmp_path: Path) -> None:
    draw_growth([a_growth(), a_growth(peak=False)], tmp_path / "growth.png")
    pixels = pixels_of(tmp_path / "growth.png")
    assert pixels.shape[:2] == (2 * ROW_HEIGHT + 20, WIDTH)
    first, second = pixels[:ROW_HEIGHT], pixels[ROW_HEIGHT : 2 * ROW_HEIGHT]
    for row in (first, second):
        assert 0.005 < inked(row[:, : WIDTH // 2]) < 0.2
    assert inked(first[:, WIDTH // 2 + 80 :]) > 0.005
    assert inked(second[:, WIDTH // 2 + 80 :]) == 0, "no panel where the peak is not known"


def test_a_cost_that_does_not_change_is_drawn_too(tmp_path: Path) -> None:
    points = [Point(x=x, seconds={"total": 0.3}, peak=10**7, peaks={}) for x in (1, 2, 4)]
    draw_growth([fit_growth("batch", points)], tmp_path / "flat.png")
    assert inked(pixels_of(tmp_path / "flat.png")) > 0.005


def test_bars_are_as_long_as_their_seconds(tmp_path: Path) -> None:
    seconds = {"plain": [1.0, 1.0, 1.0], "ours": [0.25, 0.25, 0.25], "slow": [2.0, 2.0, 2.0]}
    one = Comparison(part="merging", case="9 regions", seconds=seconds, baseline="plain")
    draw_comparisons([one], tmp_path / "bars.png")
    pixels = pixels_of(tmp_path / "bars.png")
    assert pixels.shape[1] == WIDTH
    areas = [colour_share(pixels, colour) for colour in (FASTER, BASELINE, SLOWER)]
    assert areas[1] / areas[0] == pytest.approx(4, rel=0.15)
    assert areas[2] / areas[0] == pytest.approx(8, rel=0.15)


def test_a_comparison_more_makes_a_longer_picture(tmp_path: Path) -> None:
    one = Comparison(part="whole", case="tiny", seconds={"bare": [1.0], "ours": [2.0]}, baseline="bare")
    heights = []
    for count in (1, 3):
        draw_comparisons([one] * count, tmp_path / "bars.png")
        heights.append(len(pixels_of(tmp_path / "bars.png")))
    assert heights[1] > heights[0] * 1.5


@pytest.mark.parametrize(
    ("told", "text"),
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
def test_figures_have_three_digits_and_a_unit(told: str, text: str) -> None:
    assert told == text
