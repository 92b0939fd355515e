"""How seconds and memory grow with the tokens, the batch, the segments and the pixels of an image.

Each point runs in a process of its own (`jobs.benchmarks.point`), one after the other.
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
"""tokens of the working grid for an image of 480 x 640 pixels; images of 480 x 640 at a time, at 32² tokens; segments
planted in the attention of 64² tokens; pixels of a JPEG from its bytes to the PNG of its mask, at 32² tokens."""

WORTH_FITTING = 0.05
"""Share of the total that a step must reach at some point to have an exponent of its own."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """x: tokens, images of the batch, segments or pixels. seconds: an image, by step, and their "total" with the rest.

    peak: the most bytes that the process held above what it held before, for the whole batch; None where the system
    does not tell. peaks: the same within each step.
    """

    x: int
    seconds: Mapping[str, float]
    peak: int | None
    peaks: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Growth:
    """points: in the order of x. exponents: {"total", steps that matter, "peak": e} of cost ~ x to the e, least squares
    on logarithms; without "peak" where it is not known."""

    against: Against
    points: Sequence[Point]
    exponents: Mapping[str, float]


def measure_growth(axes: Mapping[Against, Sequence[int]] = AXES) -> list[Growth]:
    """All points of all axes: some six minutes, up to 1.5 GB. Raises RuntimeError where a point's process fails."""
    return [growth_of(against, [measure_point(against, x) for x in xs]) for against, xs in axes.items()]


def growth_of(against: Against, points: Sequence[Point]) -> Growth:
    """The points with the exponents that fit them."""
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
    """The e of costs ~ x to the e, least squares on the logarithms of two numbers > 0 or more."""
    return statistics.linear_regression(*([math.log(value) for value in values] for values in (xs, costs))).slope


def measure_point(against: Against, x: int) -> Point:
    """One point, in a process of its own. Raises RuntimeError with the end of what that process said if it fails."""
    command = [sys.executable, "-m", "jobs.benchmarks.point", json.dumps({"against": against, "x": x})]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode != 0:
        raise RuntimeError(f"{against} {x}: exit code {child.returncode}: {child.stderr[-2000:]}")
    return Point(**json.loads(child.stdout.splitlines()[-1]))
