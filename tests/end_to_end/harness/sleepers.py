"""`python sleepers.py SECONDS SRC OUT …`: `diffseg label` with workers that sleep instead of labelling.

The commit records name the node and the process of the worker.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

import ray
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[2] / "pipeline"))

import doubles

from jobs.common import guarded
from jobs.label import parse
from pipeline.executor.driver import label_run

SICK = "SLEEPERS_SICK"
"""Environment variable of a node on which every shard fails: "disk" for a full disk, else another error."""

HURRY = "hurry"
"""File beside OUT. While it exists, shards take no time: a test creates it once it has seen what it waited for."""


class Sleeper(doubles.Sleeper):
    """A worker that takes `shard_seconds` for a shard, and names its node and process in the commit record."""

    shard_seconds = 0.0

    def location(self) -> str:
        return f"{ray.get_runtime_context().get_node_id()} {os.getpid()}"

    def misbehave(self, shard: object, attempt: int) -> None:
        """Take the time of a shard, and fail on a node whose environment says so."""
        end = time.monotonic() + self.shard_seconds
        while time.monotonic() < end and not Path(self.job.out.url).with_name(HURRY).exists():
            time.sleep(0.05)
        if kind := os.environ.get(SICK):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scratch") if kind == "disk" else RuntimeError(kind)


def main(seconds: float, argv: list[str]) -> int:
    """Run with shards that take `seconds` each, and return the exit code of the command."""
    command = parse(argv)
    Sleeper.shard_seconds = seconds

    def run() -> int:
        summary = label_run(
            command.source,
            command.out,
            settings=command.label,
            worker=command.worker,
            run=command.run,
            console=Console(stderr=True),
            worker_class=Sleeper,
        )
        for node, reason in summary.set_aside.items():
            print(f"node {node} was set aside: {reason}", file=sys.stderr)
        return 1 if summary.failed else 0

    return guarded(run)


if __name__ == "__main__":
    for module in (sys.modules[__name__], doubles):
        ray.cloudpickle.register_pickle_by_value(module)  # workers cannot import the modules
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
