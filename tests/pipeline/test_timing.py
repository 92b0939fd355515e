"""The stopwatch of steps."""

from __future__ import annotations

import pytest

from pipeline import timing
from pipeline.timing import StepTimer


def test_a_step_within_a_step_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 10.0, 20.0, 24.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    step = StepTimer()
    with step("outer"), step("inner"):
        pass
    with step("outer"):
        pass
    assert dict(step.seconds) == {"outer": 8.0 + 4.0, "inner": 2.0}
