"""Part growth: how time and memory grow with the tokens, the batch, the segments and the pixels of an image.

Each point is measured in its own process (`jobs.benchmarks.point`), one after another.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Against = Literal["tokens", "batch", "segments", "pixels"]

AXES: Mapping[Against, Sequence[int]] = {
    "tokens": (32**2, 64**2, 96**2, 128**2),
    "batch": (1, 2, 4, 8),
    "segments": (2, 8, 32, 128),
    "pixels": (300_000, 1_000_000, 3_000_000, 12_000_000, 50_000_000),
}
"""The measured points of each axis.

tokens: tokens of the working grid, for an image of 480 x 640 pixels. batch: images of 480 x 640 pixels at once, at 32²
tokens. segments: regions planted in attention of 64² tokens. pixels: pixels of a JPEG, from its bytes to the PNG of its
mask, at 32² tokens.
"""

WORTH_FITTING = 0.05
"""Share of the total time that a step must reach at some point to get an exponent."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """The cost of one point.

    Attributes:
        x: The number of tokens, images in the batch, segments or pixels.
        seconds: Seconds per image by step; "total" includes the time between the steps.
        peak: Peak of resident memory above the memory held before, in bytes, for the whole batch; None if the system
            does not report it.
        peaks: The same within each step.
    """

    x: int
    seconds: Mapping[str, float]
    peak: int | None
    peaks: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The points of one axis, and the exponents e of cost ~ x^e.

    Attributes:
        against: The axis.
        points: The points, in the order of x.
        exponents: Exponents of the "total", of the steps that matter and of the "peak", fitted by least squares on
            logarithms; without "peak" if the peak is not known.
    """

    against: Against
    points: Sequence[Point]
    exponents: Mapping[str, float]


def measure_growth(axes: Mapping[Against, Sequence[int]] = AXES) -> list[Growth]:
    """Measure all points of all axes, in about six minutes and up to 1.5 GB. Raises RuntimeError if a process fails."""
    return [fit_growth(against, [measure_point(against, x) for x in xs]) for against, xs in axes.items()]


def fit_growth(against: Against, points: Sequence[Point]) -> Growth:
    """Fit the exponents of the points of one axis."""
    xs = [point.x for point in points]
    exponents = {
        name: exponent(xs, [point.seconds[name] for point in points])
        for name in points[0].seconds
        if any(point.seconds[name] > WORTH_FITTING * point.seconds["total"] for point in points)
    }
    peaks = [point.peak for point in points if point.peak]
    if len(peaks) == len(points):
        exponents["peak"] = exponent(xs, peaks)
    return Growth(against=against, points=points, exponents=exponents)


def exponent(xs: Sequence[float], costs: Sequence[float]) -> float:
    """Return the e of costs ~ x^e by least squares on logarithms; needs two or more points with positive values."""
    return statistics.linear_regression(*([math.log(value) for value in values] for values in (xs, costs))).slope


def measure_point(against: Against, x: int) -> Point:
    """Measure one point in its own process. Raises RuntimeError with the end of the error output if that fails."""
    command = [sys.executable, "-m", "jobs.benchmarks.point", json.dumps({"against": against, "x": x})]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise RuntimeError(f"{against} {x}: exit code {process.returncode}: {process.stderr[-2000:]}")
    return Point(**json.loads(process.stdout.splitlines()[-1]))
