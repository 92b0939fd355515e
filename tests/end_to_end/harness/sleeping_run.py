"""A run of sleeping workers in a process of its own, and what it has done so far."""

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

    def said(self) -> str:
        """Return what the driver has printed so far."""
        return self._log.read_text()

    def commits(self) -> list[Commit]:
        """Return the records of the shards that are done, in the order of their ends."""
        return sorted(read_commits(Storage(url=str(self.out))).values(), key=lambda commit: commit.finished)

    def nodes(self) -> set[str]:
        """Return the nodes that have done a shard."""
        return {commit.worker.split()[0] for commit in self.commits()}

    def by(self, node: str) -> list[str]:
        """Return the shards that a node has done."""
        return [commit.shard for commit in self.commits() if commit.worker.startswith(node)]

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition. The test fails if the driver ends before it or takes too long."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.1)

    def until_said(self, words: str) -> None:
        """Wait until the driver has printed these words, wherever the log breaks its lines."""
        self.until(lambda: words in " ".join(self.said().split()))

    def ended(self) -> int:
        """Wait for the end of the driver and return its exit code."""
        return self.process.wait(DEADLINE)
