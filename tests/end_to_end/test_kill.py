"""A run that is stopped by Ctrl-C and one that loses an actor, on a local Ray; what else may die: test_chaos.py.

The blow falls when a shard is done and others are not, so in mid-run on a machine of any speed.
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
from runs import BOTH, DEADLINE, FAST, differences, environment

from pipeline.output.commit import read_commits
from pipeline.output.verify import verify_commit
from pipeline.storage import Storage

SHARDS, ROWS = 5, 20
LEFT_SECONDS = 120.0


class Driver:
    """`diffseg label` with two actors on a local Ray, leader of its own session, and the processes below it."""

    def __init__(self, source: Path, out: Path, log: Path) -> None:
        self._out, self._log = out, log
        flags = ["--address", "local", "--workers", "2", *FAST, *BOTH]
        line = [sys.executable, "-m", "jobs.label", str(source), str(out), *flags]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                line, stdout=output, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
            )
        self._seen: set[psutil.Process] = set()

    def said(self) -> str:
        return self._log.read_text()

    def family(self) -> set[psutil.Process]:
        """The driver's descendants so far: Ray's own processes and the actors, dead ones too."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen.update(psutil.Process(self.process.pid).children(recursive=True))
        return self._seen

    def actors(self) -> list[psutil.Process]:
        """The processes that are labelling at this moment."""
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                if "ray::LabelWorker.label" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill_an_actor(self) -> bool:
        """Kill a process that is labelling, and say whether there was one: it may have gone on between two looks."""
        for actor in self.actors()[:1]:
            actor.kill()
            return True
        return False

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for the moment; a driver that ends before it, or never gets there, fails the test."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.03)  # a look at all processes takes milliseconds itself

    def ended(self) -> int:
        return self.process.wait(DEADLINE)

    def left_behind(self) -> list[str]:
        """What still runs a good while after the driver is gone."""
        _, alive = psutil.wait_procs(self._seen, timeout=LEFT_SECONDS)
        return [str(process) for process in alive]


@contextlib.contextmanager
def started(source: Path, out: Path, log: Path) -> Iterator[Driver]:
    """A driver; whatever happens in the test, nothing that it started outlives the block."""
    # A shell that runs the tests in the background has them, and so the driver, ignore SIGINT.
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


def committed(out: Path) -> int:
    return sum(path.suffix == ".json" and path.name[0] != "." for path in (out / "commits").glob("*"))


def test_after_ctrl_c_the_same_command_goes_on_and_replaces_an_actor_that_dies(
    scene_tars: Path, labelled: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with started(scene_tars, out, tmp_path / "first.log") as driver:
        driver.until(lambda: committed(out))
        driver.family()
        driver.process.send_signal(signal.SIGINT)
        assert driver.ended() == 130
        assert "run the same command again" in driver.said()
        assert "Traceback" not in driver.said()
        assert driver.left_behind() == []
    storage = Storage(url=str(out))
    commits = read_commits(storage)
    done = len(commits)
    assert 0 < done < SHARDS
    assert [verify_commit(storage, commit) for commit in commits.values()] == [[]] * done

    with started(scene_tars, out, tmp_path / "second.log") as driver:
        driver.until(driver.kill_an_actor)
        assert driver.ended() == 0, driver.said()
        assert "a worker was lost and is replaced" in driver.said()
        assert f"{SHARDS} of {SHARDS} shards done, {done} of them before" in driver.said()
        assert driver.left_behind() == []
    # The shard in the lost actor's hands was done by another attempt, and nothing else was.
    attempts = sorted(commit.attempt for commit in read_commits(storage).values())
    assert attempts == [1] * (SHARDS - 1) + [2]
    assert differences(out, labelled) == []
    assert re.search(rf"ok\W+{ROWS}\b", driver.said())
