"""The progress that is shown on the console."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from pipeline.executor.progress_bar import ProgressBar
from pipeline.executor.protocol import RunState, ShardInFlight, WorkerProgress


def state(*, ready: int, samples: int = 0, waiting: str = "") -> RunState:
    progress = WorkerProgress(samples=samples, waiting=waiting)
    in_flight = ShardInFlight(shard="s", attempt=1, since=time.monotonic(), worker="here:1", progress=progress)
    return RunState(ready=ready, requested=ready, waiting=0, in_flight=[in_flight])


def test_the_beginning_and_the_end_of_a_wait_are_printed() -> None:
    text = io.StringIO()
    with ProgressBar(2, console=Console(file=text)) as progress:
        progress.update(state(ready=2, waiting="s3://b/x does not answer (reset)"))
        progress.update(state(ready=2, waiting="s3://b/x does not answer (reset)"))
        progress.shard_finished(3)
    assert text.getvalue() == "1 of 2 workers are waiting: s3://b/x does not answer (reset)\nall workers have resumed\n"


def test_images_are_counted_once_when_their_shard_is_done() -> None:
    with ProgressBar(2, console=Console(file=io.StringIO())) as progress:
        progress.update(state(ready=1, samples=5))
        progress.shard_finished(6)
        assert "1/2 shards · 6 images" in progress.status()


def test_after_a_time_without_workers_images_and_clock_start_together(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("pipeline.executor.progress_bar.time.monotonic", lambda: now)
    with ProgressBar(9, console=Console(file=io.StringIO())) as progress:
        progress.update(state(ready=1))
        now += 100.0
        progress.shard_finished(2000)
        assert "2000 images · 20.0/s" in progress.status()
        progress.update(state(ready=0))
        now += 500.0
        progress.update(state(ready=1))
        assert "2000 images · 0.0/s" in progress.status()
        now += 10.0
        progress.update(state(ready=1, samples=50))
        assert "2050 images · 5.0/s" in progress.status()
