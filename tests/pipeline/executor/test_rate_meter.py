"""The rate of a run is that of its last minutes."""

from __future__ import annotations

import time

import pytest

from pipeline.executor.rate_meter import RATE_SECONDS, RateMeter


def test_the_rate_is_that_of_the_last_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = RateMeter()
    assert meter.measure(0.0, 0) == (None, 0.0), "no worker has been ready"
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    meter.start()
    assert meter.measure(1100.0, 500) == (5.0, 100.0)
    for tick in range(1, 100):
        rate, seconds = meter.measure(1100.0 + 15 * tick, 500 + 30 * tick)
    assert rate == pytest.approx(2.0)
    assert seconds == RATE_SECONDS
    assert len(meter._counts) == RATE_SECONDS / 15 + 1
    assert meter.measure(1100.0 + 15 * 100, 0) == (0.0, RATE_SECONDS), "a failed attempt takes images away"
