"""Whether a run is at work in OUT, whatever the clocks of the machines say."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.errors import RunRefused
from pipeline.executor import live_run
from pipeline.executor.live_run import refuse_live_run
from pipeline.executor.progress_file import ProgressFile
from pipeline.storage import Storage


class Watch:
    """A clock without waiting. Each second that is waited for does what is left of `seconds`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.seconds = 0.0, iter(())  # type: tuple[float, Any]
        monkeypatch.setattr(live_run.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(live_run.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        next(self.seconds, None)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


@pytest.fixture
def out(tmp_path: Path) -> Storage:
    return Storage(url=str(tmp_path))


def report(out: Storage, *, age: float, host: str = "another machine", state: str = "running", **changes: Any) -> None:
    """Write progress.json as a driver does whose clock is `age` seconds behind."""
    values = ProgressFile(out, todo=1)._report().to_dict()
    values |= {"state": state, "host": host, "written": time.time() - age, "started": time.time() - age - 60}
    out.write_bytes("progress.json", json.dumps(values | changes).encode())


def test_a_run_of_a_machine_whose_clock_is_hours_behind_is_not_overwritten(out: Storage, watch: Watch) -> None:
    report(out, age=5 * 3600)
    watch.seconds = (report(out, age=5 * 3600, images=number) for number in range(1, 30))
    with pytest.raises(RunRefused, match=r"at work here, on another machine as process \d+; it has just reported"):
        refuse_live_run(out)


def test_a_run_of_this_machine_is_not_overwritten_after_its_clock_was_set_forwards(
    out: Storage, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The system computes the creation time of a process from the present clock.
    create_time = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: create_time(process) + 5 * 3600)
    report(out, age=0, host=socket.gethostname())
    watch.seconds = (report(out, age=0, host=socket.gethostname(), images=number) for number in range(1, 30))
    with pytest.raises(RunRefused, match=f"process {os.getpid()}"):
        refuse_live_run(out)


def test_a_recent_report_is_refused_at_once(out: Storage, watch: Watch) -> None:
    report(out, age=20)
    with pytest.raises(RunRefused, match="its last report is from"):
        refuse_live_run(out)
    assert watch.now == 0


def test_a_killed_run_of_a_machine_whose_clock_is_hours_ahead_may_be_overwritten(out: Storage, watch: Watch) -> None:
    report(out, age=-5 * 3600)
    refuse_live_run(out)
    assert watch.now >= live_run.WATCH_SECONDS


def test_a_run_that_does_not_report_may_be_overwritten(out: Storage, watch: Watch) -> None:
    report(out, age=5 * 3600)
    refuse_live_run(out)
    assert watch.now >= live_run.WATCH_SECONDS > live_run.INTERVAL_SECONDS


def test_nothing_is_waited_for_where_the_driver_is_known_to_have_ended(out: Storage, watch: Watch) -> None:
    refuse_live_run(out)
    report(out, age=3600, state="stopped")
    refuse_live_run(out)
    report(out, age=3600, host=socket.gethostname(), pid=2**22 + 1)
    refuse_live_run(out)
    assert watch.now == 0


def test_a_run_that_ends_meanwhile_may_be_overwritten(out: Storage, watch: Watch) -> None:
    report(out, age=5 * 3600)
    watch.seconds = (report(out, age=5 * 3600, state=state) for state in ("ended",))
    refuse_live_run(out)
    assert watch.now == live_run.POLL_SECONDS
