"""Tests of part growth: the exponents of exact power laws, and points that are measured."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffseg.model.backbone import Step
from jobs.benchmarks import point as point_module
from jobs.benchmarks.growth import Point, exponent, fit_growth, measure_point
from jobs.benchmarks.point import CLEAR_REFS, Case, Memory, case_of, measure

MB = 1_000_000
ROOT = Path(__file__).parents[3]

needs_proc = pytest.mark.skipif(
    not CLEAR_REFS.exists(), reason="this system does not report the peak of memory of a process"
)


def make_point(x: int, peak: int | None) -> Point:
    """Return a point with a step that costs x², one that costs a tenth of that, and one that is negligible."""
    seconds = {"unet": 2e-3 * x**2, "decide": 2e-4 * x**2, "resize": 1e-6 * x**2, "total": 2.2e-3 * x**2}
    return Point(x=x, seconds=seconds, peak=peak, peaks={})


def test_the_exponents_of_power_laws_are_exact() -> None:
    growth = fit_growth("tokens", [make_point(x, round(1000 * math.sqrt(x))) for x in (4, 16, 64, 256)])
    assert growth.exponents == pytest.approx({"unet": 2, "decide": 2, "total": 2, "peak": 0.5})
    assert exponent([1, 10, 100], [7, 7, 7]) == 0
    # log2 of the costs is 0, 0, 3: the least squares line through them at 0, 1, 2 rises by 1.5
    assert exponent([1, 2, 4], [1, 1, 8]) == pytest.approx(1.5)


def test_a_step_that_matters_at_one_point_gets_an_exponent() -> None:
    points = [
        Point(x=x, seconds={"png": 1e-3 * x, "unet": 1.0, "total": 1 + 1e-3 * x}, peak=None, peaks={})
        for x in (1, 100, 10_000)
    ]
    exponents = fit_growth("pixels", points).exponents
    assert exponents["png"] == pytest.approx(1)
    assert exponents["unet"] == pytest.approx(0)
    assert "peak" not in exponents


MEMORY_PROGRAM = """
import json
import numpy as np
from jobs.benchmarks.point import Memory

MB = 1_000_000
freed = np.ones(50 * MB)
del freed
memory, peaks = Memory(), []
with memory("small"):
    np.ones(2 * MB)
peaks.append(memory.peaks["small"])
with memory("large"):
    np.ones(20 * MB)
peaks.append(memory.peaks["large"])
held = np.ones(30 * MB)
peaks.append(memory.peak)
with memory("small"):
    np.ones(2 * MB)
peaks.append(memory.peaks["small"])  # memory that is held meanwhile counts too
print(json.dumps(peaks))
"""


@needs_proc
def test_memory_reports_the_peak_of_each_step_and_of_the_time_between_steps() -> None:
    # In its own process, because the numbers include all threads, and other tests may have left some running.
    line = [sys.executable, "-c", MEMORY_PROGRAM]
    process = subprocess.run(
        line, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    # Linux counts pages in batches, so a number may be wrong by some hundred kB.
    assert json.loads(process.stdout) == pytest.approx([16 * MB, 160 * MB, 240 * MB, 256 * MB], abs=8 * MB)


@needs_proc
def test_a_point_is_measured_in_its_own_process() -> None:
    tokens = 16**2
    point = measure_point("tokens", tokens)
    assert point.x == tokens
    steps = {"resize", "encode", "unet", "aggregate", "merge", "refine", "decide", "results"}
    assert set(point.seconds) == steps | {"total"}
    assert set(point.peaks) == steps
    assert 0 < sum(point.seconds[step] for step in steps) <= point.seconds["total"]
    assert point.peak is not None
    assert 4 * tokens**2 <= max(point.peaks.values()) <= point.peak < 200 * MB


def test_a_point_that_fails_raises_its_error_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no memory is left >&2\nexit 137\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(RuntimeError, match=r"tokens 16384: exit code 137: no memory is left"):
        measure_point("tokens", 128**2)


def test_seconds_are_per_image_of_the_median_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        point_module, "keep_freed_memory", lambda: None
    )  # it would change the allocator of this process
    pauses = iter([0, 0.6, 0.1, 0.3])  # the first call measures memory, the other three seconds
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("pipeline.timing.time", clock)
    monkeypatch.setattr(point_module, "time", clock)

    def work(step: Step) -> None:
        with step("unet"):
            now[0] += next(pauses)

    result = measure(Case(warm_up=lambda step: None, work=work, images=2))
    assert result["seconds"] == pytest.approx({"unet": 0.15, "total": 0.15})
    assert next(pauses, None) is None


@pytest.mark.parametrize(
    ("against", "x", "steps"),
    [
        ("batch", 2, {"encode"}),
        ("segments", 2, {"aggregate", "merge", "decide"}),
        ("pixels", 20_000, {"decode", "resize", "unet", "png"}),
    ],
)
def test_other_axes_measure_their_steps(against: str, x: int, steps: set[str]) -> None:
    case = case_of(against, x)
    memory = Memory()
    with torch.inference_mode():
        case.work(memory)
    if memory.peak is not None:
        assert steps <= set(memory.peaks)
