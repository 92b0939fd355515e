"""Runs that are stopped and killed in every way, on a Ray of their own; what is left in the end is always the same.

Each stage starts the same command on the same OUT and strikes when one more shard has been committed, so that every
blow falls in mid-run on a machine of any speed. The undisturbed run is one without Ray: the bytes must be those too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from runs import BOTH, DEADLINE, FAST, differences, environment, label

import jobs.shard
from pipeline.commit import read_commits, verify_commit
from pipeline.storage import Storage

SHARDS = 20
LEFT_SECONDS = 120.0


@pytest.fixture(scope="module")
def tars(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three samples: long enough that a few are left after each blow."""
    images, folder = tmp_path_factory.mktemp("thrice"), tmp_path_factory.mktemp("tars")
    for name in "xyz":
        shutil.copytree(scene_folder, images / name)
    assert jobs.shard.main([str(images), str(folder), "--samples-per-shard", "3"]) == 0
    assert len(list(folder.iterdir())) == SHARDS
    return folder


@pytest.fixture(scope="module")
def undisturbed(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert label(tars, out, "--no-ray", *BOTH) == 0
    return out


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

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for the moment; a driver that ends before it, or never gets there, fails the test."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.01)

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


def assert_mid_run(out: Path, before: int) -> int:
    """Some shards are done, not all, and what their records promise is there; their number."""
    storage = Storage(url=str(out))
    commits = read_commits(storage)
    assert before < len(commits) < SHARDS
    assert [verify_commit(storage, commit) for commit in commits.values()] == [[]] * len(commits)
    return len(commits)


def interrupt(driver: Driver) -> None:
    driver.process.send_signal(signal.SIGINT)
    assert driver.ended() == 130
    assert "run the same command again" in driver.said()
    assert "Traceback" not in driver.said()


def kill_driver(driver: Driver) -> None:
    driver.process.kill()
    assert driver.ended() == -signal.SIGKILL


def kill_everything(driver: Driver) -> None:
    """As when the machine loses its power: raylet, store, actors and driver at once."""
    family = driver.family()
    os.killpg(driver.process.pid, signal.SIGKILL)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert driver.ended() == -signal.SIGKILL


def test_whatever_kills_a_run_the_same_command_ends_in_the_same_tree(
    tars: Path, tmp_path: Path, undisturbed: Path
) -> None:
    out = tmp_path / "out"
    done = 0
    for number, strike in enumerate((interrupt, kill_driver, kill_everything)):
        with started(tars, out, tmp_path / f"{number}.log") as driver:
            driver.until(lambda: committed(out) > done)  # noqa: B023 - called within this round alone
            driver.family()
            strike(driver)
            assert driver.left_behind() == [], strike.__name__
        done = assert_mid_run(out, done)
    with started(tars, out, tmp_path / "last.log") as driver:
        # The last run loses an actor, and must end by itself.
        driver.until(lambda: committed(out) > done and driver.actors())
        driver.actors()[0].kill()
        assert driver.ended() == 0, driver.said()
        assert "a worker was lost and is replaced" in driver.said()
        assert f"{SHARDS} of {SHARDS} shards done, {done} of them before" in driver.said()
        assert driver.left_behind() == []
    # The shard in the lost actor's hands was done by another attempt, and nothing else was.
    attempts = sorted(commit.attempt for commit in read_commits(Storage(url=str(out))).values())
    assert attempts == [1] * (SHARDS - 1) + [2]
    assert differences(out, undisturbed) == []
    assert re.search(r"ok\W+60\b", driver.said())
