"""The watch over a cluster whose head stops answering, without a Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import RunFailed
from pipeline.executor import cluster
from pipeline.executor.cluster import ClusterWatch
from pipeline.executor.connection import _watched

HANGS = """
import threading, time
from pipeline.executor import cluster
cluster.HEAD_SECONDS, cluster.LEAVE_SECONDS = 0.5, 0.3
cluster.ClusterWatch._poll = lambda watch: time.sleep(60)
watch = cluster.ClusterWatch()
while True:
    try:
        time.sleep(60)
    except KeyboardInterrupt:  # like a call of Ray that does not return
        pass
"""


@pytest.fixture
def silent_head(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A head that stops answering once the event is set, and is lost after half a second."""
    silent = threading.Event()

    def poll(watch: ClusterWatch) -> None:
        asked_at = time.monotonic()
        if silent.is_set():
            time.sleep(3)
            return
        watch._silence, watch.asked_at = 0.0, asked_at

    monkeypatch.setattr(ClusterWatch, "_poll", poll)
    monkeypatch.setattr(cluster, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(cluster, "LEAVE_SECONDS", 1.0)
    monkeypatch.setattr(os, "_exit", lambda _: None)  # on a busy machine the tests may take longer to leave
    monkeypatch.setattr("pipeline.executor.connection.abandoned", threading.Event())
    return silent


def test_a_call_that_waits_for_a_lost_head_ends_with_advice(silent_head: threading.Event) -> None:
    with _watched(is_private=False) as connection:
        watch = connection.watch
        watch.refresh()
        assert watch.call(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            watch.call(lambda: 1 // 0)
        silent_head.set()
        with pytest.raises(RunFailed, match=r"has not answered for 0 s\. .*run the same command again"):
            watch.call(lambda: time.sleep(5))
        with pytest.raises(RunFailed):
            watch.refresh()


def test_a_main_thread_that_waits_for_something_else_is_interrupted(silent_head: threading.Event) -> None:
    def wait() -> None:
        with _watched(is_private=False):
            silent_head.set()
            time.sleep(300)

    # Another test of this process may have left a handler, which the watch would not replace.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(RunFailed, match="run the same command again"):
            wait()
    finally:
        signal.signal(signal.SIGINT, handler)


def test_a_process_that_does_not_react_is_ended_with_the_advice() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", HANGS], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "run the same command again" in done.stderr


def test_a_head_that_answers_again_is_not_lost(silent_head: threading.Event) -> None:
    with _watched(is_private=False) as connection:
        for _ in range(4):
            connection.watch.refresh()
            time.sleep(0.2)
        assert not connection.watch.is_lost
