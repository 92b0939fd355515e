"""A run of sleeping workers in another process, and what it has done so far."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from clusters import AutoscalingCluster, Cluster
from runs import DEADLINE

from pipeline.output.commit import Commit, read_commits
from pipeline.storage import Storage

SLEEPERS = Path(__file__).parent / "sleepers.py"
HURRY = "hurry"  # as in sleepers.py, which this process does not need


class SleepingRun:
    """A run of sleeping workers on a cluster, over shards that need not exist."""

    def __init__(
        self,
        cluster: Cluster | AutoscalingCluster,
        folder: Path,
        *,
        shards: int,
        seconds: float,
        flags: tuple[str, ...],
    ) -> None:
        """Start the run.

        Args:
            cluster: The cluster that the run joins.
            folder: The folder of OUT and of the log.
            shards: Number of shards. It must be large enough that the run does not end before `hurry`.
            seconds: Time that a worker takes for a shard.
            flags: Further flags of `diffseg label`.
        """
        self.out, self._log = folder / "out", folder / "driver.log"
        source = f"{folder}/{{{','.join(f'{number:03d}' for number in range(shards))}}}.tar"
        line = [sys.executable, str(SLEEPERS), str(seconds), source, str(self.out), "--device", "cpu"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*line, "--address", cluster.address, *flags],
                cwd=folder,
                env=cluster.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def output(self) -> str:
        """Return what the driver has printed so far, without its line breaks."""
        return " ".join(self._log.read_text().split())

    def commits(self) -> list[Commit]:
        """Return the records of the finished shards, in the order in which they were finished."""
        return sorted(read_commits(Storage(url=str(self.out))).values(), key=lambda commit: commit.finished)

    def nodes(self) -> set[str]:
        """Return the nodes that have finished a shard."""
        return {commit.worker.split()[0] for commit in self.commits()}

    def workers(self) -> set[str]:
        """Return the nodes and processes of the workers that have finished a shard."""
        return {commit.worker for commit in self.commits()}

    def shards_of(self, node: str) -> list[str]:
        """Return the shards that a node has finished."""
        return [commit.shard for commit in self.commits() if commit.worker.startswith(node)]

    def hurry(self) -> None:
        """Let the remaining shards take no time, because the test has seen what it waited for."""
        self.out.with_name(HURRY).touch()

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition. The test fails if the driver ends before, or takes too long."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < end, self.output()
            time.sleep(0.1)

    def wait_for_output(self, words: str) -> None:
        """Wait until the driver has printed these words, wherever the log breaks its lines."""
        self.wait_until(lambda: words in self.output())

    def wait(self) -> int:
        """Wait for the end of the driver and return its exit code. The test fails if the driver takes too long."""
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended; {len(self.commits())} commits: {self.output()}") from None
