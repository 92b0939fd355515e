"""A run that is stopped by Ctrl-C, and a run that loses an actor, on a local Ray. test_chaos.py kills everything else.

A proxy holds the requests for the last shards, so that both happen in the middle of the run on a machine of any speed.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from clusters import connected
from faulty_proxy import FaultyProxy
from file_server import file_server
from runs import BOTH, DEADLINE, FAST, committed, environment, label_differences

from pipeline.output.commit import read_commits
from pipeline.output.verify import verify_commit
from pipeline.storage import Storage

SHARDS, ROWS = 5, 20
LEFT_SECONDS = 120.0
"""How long the processes of a run may outlive its driver."""


class Driver:
    """`diffseg label` with two actors on a local Ray, as the leader of a session, and the processes below it."""

    def __init__(self, source: str, out: Path, log: Path) -> None:
        self._log = log
        flags = ["--address", "local", "--workers", "2", *FAST, *BOTH]
        line = [sys.executable, "-m", "jobs.label", source, str(out), *flags]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                line, stdout=output, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
            )
        self._seen: set[psutil.Process] = set()

    def output(self) -> str:
        return self._log.read_text()

    def family(self) -> set[psutil.Process]:
        """Return all descendants seen so far: Ray's own processes and the actors, also dead ones."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen.update(psutil.Process(self.process.pid).children(recursive=True))
        return self._seen

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition. A driver that ends before, or never meets it, fails the test."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < end, self.output()
            time.sleep(0.03)

    def wait(self) -> int:
        return self.process.wait(DEADLINE)

    def left_behind(self) -> list[str]:
        """Return the processes that still run long after the driver has ended."""
        _, alive = psutil.wait_procs(self._seen, timeout=LEFT_SECONDS)
        return [str(process) for process in alive]


@contextlib.contextmanager
def started(source: str, out: Path, log: Path) -> Iterator[Driver]:
    """Start a driver. At the end of the block, kill it and all its descendants."""
    # A shell that runs the tests in the background makes them, and so the driver, ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    driver = Driver(source, out, log)
    try:
        yield driver
    finally:
        signal.signal(signal.SIGINT, before)
        for process in driver.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        driver.process.kill()
        driver.process.wait()


@pytest.fixture
def proxy(scene_tars: Path) -> Iterator[FaultyProxy]:
    """A proxy in front of an HTTP server for the five tars."""
    with file_server(scene_tars) as url, FaultyProxy(url) as between:
        yield between


def test_after_ctrl_c_the_same_command_resumes_and_replaces_an_actor_that_dies(
    proxy: FaultyProxy, labelled: Path, tmp_path: Path
) -> None:
    source, out = f"{proxy.endpoint}/{{000000..000004}}.tar", tmp_path / "out"
    proxy.hold("GET /00000[34].tar")
    with started(source, out, tmp_path / "first.log") as driver:
        driver.wait_until(lambda: committed(out) == SHARDS - 2 and len(set(proxy.held)) == 2)
        driver.family()
        driver.process.send_signal(signal.SIGINT)
        assert driver.wait() == 130
        assert "run the same command again" in driver.output()
        assert "Traceback" not in driver.output()
        assert driver.left_behind() == []
    storage = Storage(url=str(out))
    commits = read_commits(storage)
    assert sorted(commits) == ["000000", "000001", "000002"]
    assert [verify_commit(storage, commit) for commit in commits.values()] == [[], [], []]

    proxy.hold("GET /000004.tar")
    with started(source, out, tmp_path / "second.log") as driver:
        driver.wait_until(lambda: committed(out) == SHARDS - 1 and proxy.held)
        (actor,) = connected(driver.family(), proxy.held_ports)
        actor.kill()
        proxy.release()
        assert driver.wait() == 0, driver.output()
        assert "a worker was lost and is replaced" in driver.output()
        assert f"{SHARDS} of {SHARDS} shards done, {SHARDS - 2} of them before" in driver.output()
        assert driver.left_behind() == []
    # Only the shard of the lost actor took another attempt.
    attempts = {shard: commit.attempt for shard, commit in read_commits(storage).items()}
    assert attempts == {f"{number:06d}": 1 for number in range(SHARDS - 1)} | {"000004": 2}
    assert label_differences(out, labelled) == []
    assert re.search(rf"ok\W+{ROWS}\b", driver.output())
