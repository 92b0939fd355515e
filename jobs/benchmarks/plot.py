"""Plots of measurements: how cost grows, on logarithmic axes, and how variants compare, as bars."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffseg.drawing.plot import COLOURS, INK, SOFT, new_figure, save_figure, style_axes
from jobs.benchmarks.growth import Growth
from jobs.benchmarks.measure import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASELINE, FASTER, SLOWER = "#b6bcc4", "#2f7fc1", "#d9822b"
"""Colours of the bars of the baseline, and of variants that are faster and slower than the baseline."""

LABEL_ROOM = 1.6
"""Width of a panel of bars, including the texts behind the bars, relative to its longest bar."""


def _with_unit(value: float, units: Mapping[str, float]) -> str:
    """Format three digits in the largest unit that leaves 1 or more, such as "20 ms"; units go from large to small."""
    unit, size = next(((unit, size) for unit, size in units.items() if value >= size * 0.9995), list(units.items())[-1])
    return f"{float(f'{value / size:.3g}'):g} {unit}".strip()


def seconds_text(seconds: float) -> str:
    """Format a duration with three digits, such as "1.5 s" or "20 ms"."""
    return _with_unit(seconds, {"s": 1, "ms": 1e-3, "us": 1e-6})


def bytes_text(size: float) -> str:
    """Format a size with three digits in powers of 1000, such as "1.07 GB" or "30 MB"."""
    return _with_unit(size, {"GB": 1e9, "MB": 1e6, "kB": 1e3, "B": 1})


def _count_text(count: float) -> str:
    return f"{count / 1e6:g} M" if count >= 1e5 else f"{count:,.0f}"


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One curve of a growth, with the exponent that was fitted to it."""

    name: str
    exponent: float
    values: Sequence[float]
    colour: str
    width: float = 1.5


def draw_growth(growths: Sequence[Growth], path: str | os.PathLike[str]) -> None:
    """Write `growth_figure` as PNG."""
    save_figure(growth_figure(growths), path)


def growth_figure(growths: Sequence[Growth]) -> Figure:
    """Plot a row for each growth: seconds per image by step on the left, and peak memory on the right.

    Both axes are logarithmic, so that a power of x is a straight line. The legend gives the fitted power.
    """
    figure = new_figure(11.5, 3.4 * len(growths))
    panels = figure.subplots(len(growths), 2, squeeze=False)
    steps = list(dict.fromkeys(name for growth in growths for point in growth.points for name in point.seconds))
    colours = dict(zip((step for step in steps if step != "total"), COLOURS * len(steps), strict=False))
    for (left, right), growth in zip(panels, growths, strict=True):
        lines = [
            _Line(
                name=name,
                exponent=exponent,
                values=[point.seconds[name] for point in growth.points],
                colour=colours.get(name, INK),
                width=1.5 if name in colours else 2.5,
            )
            for name, exponent in growth.exponents.items()
            if name != "peak"
        ]
        _draw_lines(left, f"seconds per image by {growth.against}", growth, lines, seconds_text)
        peaks = [point.peak for point in growth.points if point.peak]
        if "peak" in growth.exponents:
            peak = _Line(name="peak", exponent=growth.exponents["peak"], values=peaks, colour=INK, width=2.5)
            _draw_lines(right, f"peak of added memory by {growth.against}", growth, [peak], bytes_text)
        else:
            right.set_visible(False)
    return figure


def _draw_lines(
    axes: Axes, title: str, growth: Growth, lines: Sequence[_Line], value_text: Callable[[float], str]
) -> None:
    """Plot the lines of one growth on logarithmic axes, with a legend in the order of their ends."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    xs = [point.x for point in growth.points]
    for line in sorted(lines, key=lambda line: line.values[-1], reverse=True):
        label = f"{line.name}  $x^{{{round(line.exponent, 2) + 0.0:.2f}}}$"
        axes.plot(xs, line.values, color=line.colour, linewidth=line.width, marker="o", markersize=4, label=label)
    axes.set(xscale="log", yscale="log", xlabel=growth.against)
    style_axes(axes, title)
    values = [value for line in lines for value in line.values]
    middle, reach = math.sqrt(min(values) * max(values)), math.sqrt(max(values) / min(values)) * 1.3
    reach = max(reach, math.sqrt(10))  # at least a decade, so that a nearly constant cost does not look steep
    axes.set_ylim(middle / reach, middle * reach)
    decades = math.log10(reach) * 2
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if decades > 3 else (1, 2, 5), numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: value_text(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(xs, [_count_text(x) for x in xs])
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9, labelcolor="linecolor")


def draw_comparisons(comparisons: Sequence[Comparison], path: str | os.PathLike[str]) -> None:
    """Write `comparison_figure` as PNG."""
    save_figure(comparison_figure(comparisons), path)


def comparison_figure(comparisons: Sequence[Comparison]) -> Figure:
    """Plot a panel for each case, with a bar for each variant whose length is its seconds per image.

    The longest bar of a case spans the panel. The text behind a bar gives the seconds, the ratio to the baseline, and
    the smallest and the largest ratio of all repetitions, which the thin line at the end of the bar shows as well.
    """
    rows = [len(comparison.seconds) for comparison in comparisons]
    figure = new_figure(11, 0.6 + sum(0.3 * count + 0.55 for count in rows))
    figure.suptitle(
        "seconds per image; grey: baseline, blue: faster, orange: slower; in brackets: range of all repetitions",
        x=0.01,
        ha="left",
        fontsize=9,
        color=SOFT,
    )
    panels = figure.subplots(len(comparisons), 1, squeeze=False, height_ratios=[count + 0.5 for count in rows])
    for axes, comparison in zip(panels[:, 0], comparisons, strict=True):
        _draw_bars(axes, comparison)
    return figure


def _draw_bars(axes: Axes, comparison: Comparison) -> None:
    """Plot the bars of one case from top to bottom, each with its text."""
    variants = list(comparison.seconds)
    baseline = comparison.median(comparison.baseline)
    longest = max(max(comparison.median(name), baseline * comparison.spread(name)[1]) for name in variants)
    for row, variant in enumerate(variants):
        seconds, ratio = comparison.median(variant), comparison.ratio(variant)
        is_baseline = variant == comparison.baseline
        axes.barh(row, seconds, height=0.7, color=BASELINE if is_baseline else FASTER if ratio < 1 else SLOWER)
        text, end = seconds_text(seconds), seconds
        if not is_baseline:
            smallest, largest = comparison.spread(variant)
            axes.plot([baseline * smallest, baseline * largest], [row, row], color=INK, linewidth=1)
            text += f"   {ratio:.2f}x  ({smallest:.2f} to {largest:.2f})"
            end = max(end, baseline * largest)
        axes.text(end + 0.015 * longest, row, text, va="center", fontsize=9, color=INK)
    style_axes(axes, f"{comparison.part}: {comparison.case}")
    axes.grid(visible=False)
    axes.set_xlim(0, longest * LABEL_ROOM)
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks(range(len(variants)), variants)
