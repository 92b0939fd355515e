"""Bar charts, which the template of the page draws as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.report.row_statistics import SHARE_BINS, SMALLEST_SHARE, RowStatistics
from pipeline.report.throughput import Throughput

MAX_BARS = 40
"""Largest number of bars of the chart of segments per image."""
LONG_SECONDS = 180
"""Runs that took at least this long have minutes on the axis of time."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a chart.

    Attributes:
        height: Share of the chart's height, 0 to 1.
        text: Tooltip.
    """

    height: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A bar chart.

    Attributes:
        title: Title.
        description: What the bars count.
        bars: Bars from left to right.
        ticks: Position, 0 to 1 from the left, and text of each label below the bars.
        top: Label of the value at height 1.
        marks: Positions of vertical lines, 0 to 1 from the left.
    """

    title: str
    description: str
    bars: Sequence[Bar]
    ticks: Sequence[tuple[float, str]]
    top: str
    marks: Sequence[float] = ()


def distributions(statistics: RowStatistics) -> list[Chart]:
    """Return the charts of segments per image, segment sizes, confidence and scores, leaving out those without data."""
    charts = []
    if statistics.segments:
        charts.append(_segments(statistics.segments))
    if statistics.shares:
        charts.append(_shares(statistics.shares))
    if statistics.confidence:
        text = "images by confidence, from 0 (uncertain) to 1 (certain)"
        charts.append(_between_0_and_1("Confidence", text, "confidence", statistics.confidence))
    for evaluation in sorted({evaluation for evaluation, _ in statistics.covering}):
        counts = {number: images for (name, number), images in statistics.covering.items() if name == evaluation}
        text = "images by the IoU of each true region with its best segment, weighted by area"
        charts.append(_between_0_and_1(f"Covering ({evaluation})", text, "covering", counts))
    return charts


def throughput_chart(throughput: Throughput) -> Chart:
    """Return the chart of images per second over the working time of the run."""
    top = max(throughput.rates)
    step = throughput.seconds / len(throughput.rates)
    size, unit = (60, "min") if throughput.seconds >= LONG_SECONDS else (1, "s")
    texts = [f"{i * step / size:.1f} to {(i + 1) * step / size:.1f} {unit}" for i in range(len(throughput.rates))]
    return Chart(
        title="Throughput",
        description="images per second over the working time; a line marks a pause of the run",
        bars=[
            Bar(height=rate / top, text=f"{text}: {rate:.2f} images/s")
            for rate, text in zip(throughput.rates, texts, strict=True)
        ],
        ticks=[(position, f"{position * throughput.seconds / size:.3g} {unit}") for position in (0.0, 0.5, 1.0)],
        top=f"{top:.3g}/s",
        marks=[pause / throughput.seconds for pause in throughput.pauses],
    )


def _segments(counts: Mapping[int, int]) -> Chart:
    width = -(-(max(counts) + 1) // MAX_BARS)
    bins = [sum(counts.get(k, 0) for k in range(start, start + width)) for start in range(0, max(counts) + 1, width)]
    names = [f"{i * width}" if width == 1 else f"{i * width} to {(i + 1) * width - 1}" for i in range(len(bins))]
    every = max(1, len(bins) // 6)
    ticks = [((i + 0.5) / len(bins), str(i * width)) for i in range(0, len(bins), every)]
    return _chart("Segments per image", "images by their number of segments", bins, names, "segments", ticks)


def _shares(counts: Mapping[int, int]) -> Chart:
    bins = [counts.get(k, 0) for k in range(SMALLEST_SHARE, -1, -1)]
    edges = [2.0**-k for k in range(SMALLEST_SHARE + 1, -1, -1)]
    names = [f"{100 * low:.3g} to {100 * high:.3g} %" for low, high in pairwise(edges)]
    names[0] = f"below {100 * edges[1]:.2g} %"
    ticks = [(i / len(bins), f"{float(f'{100 * edges[i]:.2g}'):g} %") for i in (1, 5, 8, 11, 15)]
    description = "segments by their share of the image's pixels, on a logarithmic axis"
    return _chart("Size of segments", description, bins, names, "of the image", ticks)


def _between_0_and_1(title: str, description: str, unit: str, counts: Mapping[int, int]) -> Chart:
    bins = [counts.get(k, 0) for k in range(SHARE_BINS)]
    names = [f"{k / SHARE_BINS:.2f} to {(k + 1) / SHARE_BINS:.2f}" for k in range(SHARE_BINS)]
    ticks = [(k / 4, f"{k / 4:.2g}") for k in range(5)]
    return _chart(title, description, bins, names, unit, ticks)


def _chart(
    title: str,
    description: str,
    bins: Sequence[int],
    names: Sequence[str],
    unit: str,
    ticks: Sequence[tuple[float, str]],
) -> Chart:
    top = max(bins)
    bars = [Bar(height=n / top, text=f"{name} {unit}: {n:,}") for n, name in zip(bins, names, strict=True)]
    return Chart(title=title, description=description, bars=bars, ticks=ticks, top=f"{top:,}")
