"""Numbers as bars, ready to be drawn as SVG by the page's template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.report.facts import CONFIDENCE_BINS, SMALLEST_SHARE, Facts
from pipeline.report.throughput import Throughput

MOST_BARS = 40


@dataclass(frozen=True, kw_only=True)
class Bar:
    """height: 0 to 1. text: what it says when it is pointed at."""

    height: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """ticks: (place from 0 to 1, text) below the bars. marks: places of lines across them. top: what height 1 is."""

    title: str
    about: str
    bars: Sequence[Bar]
    ticks: Sequence[tuple[float, str]]
    top: str
    marks: Sequence[float] = ()


def distributions(facts: Facts) -> list[Chart]:
    """Of segments by image, areas and confidence; those without a number are left out."""
    charts = []
    if facts.segments:
        charts.append(_segments(facts.segments))
    if facts.shares:
        charts.append(_shares(facts.shares))
    if facts.confidence:
        charts.append(_confidence(facts.confidence))
    return charts


def throughput_chart(over_time: Throughput) -> Chart:
    """Images a second while there was work in hand."""
    top = max(over_time.rates)
    step = over_time.seconds / len(over_time.rates)
    texts = [f"{i * step / 60:.1f} to {(i + 1) * step / 60:.1f} min" for i in range(len(over_time.rates))]
    return Chart(
        title="Throughput",
        about="images a second over the minutes of work; a line marks a pause of the run",
        bars=[
            Bar(height=rate / top, text=f"{text}: {rate:.2f} images/s")
            for rate, text in zip(over_time.rates, texts, strict=True)
        ],
        ticks=[(place, f"{place * over_time.seconds / 60:.3g} min") for place in (0.0, 0.5, 1.0)],
        top=f"{top:.3g}/s",
        marks=[pause / over_time.seconds for pause in over_time.pauses],
    )


def _segments(counts: Mapping[int, int]) -> Chart:
    width = -(-(max(counts) + 1) // MOST_BARS)
    bins = [sum(counts.get(k, 0) for k in range(start, start + width)) for start in range(0, max(counts) + 1, width)]
    names = [f"{i * width}" if width == 1 else f"{i * width} to {(i + 1) * width - 1}" for i in range(len(bins))]
    every = max(1, len(bins) // 6)
    ticks = [((i + 0.5) / len(bins), str(i * width)) for i in range(0, len(bins), every)]
    return _chart("Segments in an image", "images by their number of segments", bins, names, "segments", ticks)


def _shares(counts: Mapping[int, int]) -> Chart:
    bins = [counts.get(k, 0) for k in range(SMALLEST_SHARE, -1, -1)]
    edges = [2.0**-k for k in range(SMALLEST_SHARE + 1, -1, -1)]
    names = [f"{100 * low:.3g} to {100 * high:.3g} %" for low, high in pairwise(edges)]
    names[0] = f"below {100 * edges[1]:.2g} %"
    ticks = [(i / len(bins), f"{float(f'{100 * edges[i]:.2g}'):g} %") for i in (1, 5, 8, 11, 15)]
    about = "segments by their share of the image's pixels, on a logarithmic axis"
    return _chart("Size of segments", about, bins, names, "of the image", ticks)


def _confidence(counts: Mapping[int, int]) -> Chart:
    bins = [counts.get(k, 0) for k in range(CONFIDENCE_BINS)]
    names = [f"{k / CONFIDENCE_BINS:.2f} to {(k + 1) / CONFIDENCE_BINS:.2f}" for k in range(CONFIDENCE_BINS)]
    ticks = [(k / 4, f"{k / 4:.2g}") for k in range(5)]
    return _chart("Confidence", "images by confidence: 0 unsure, 1 sure", bins, names, "confidence", ticks)


def _chart(
    title: str, about: str, bins: Sequence[int], names: Sequence[str], unit: str, ticks: Sequence[tuple[float, str]]
) -> Chart:
    top = max(bins)
    bars = [Bar(height=n / top, text=f"{name} {unit}: {n:,}") for n, name in zip(bins, names, strict=True)]
    return Chart(title=title, about=about, bars=bars, ticks=ticks, top=f"{top:,}")
