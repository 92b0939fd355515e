"""`diffseg label` with workers that sleep instead of label: `python sleepers.py SECONDS SRC OUT …`.

Each records the id of its node and of its process where a shard's record names the worker.
"""

from __future__ import annotations

import errno
import os
import sys
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


class Sleeper(doubles.Sleeper):
    """On a node."""

    def location(self) -> str:
        return f"{ray.get_runtime_context().get_node_id()} {os.getpid()}"

    def misbehave(self, shard: object, attempt: int) -> None:
        """Fail at every shard on a node whose environment says so."""
        if kind := os.environ.get(SICK):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scratch") if kind == "disk" else RuntimeError(kind)


def main(seconds: float, argv: list[str]) -> int:
    """A run whose shards take so many seconds each; the exit code of the command."""
    command = parse(argv)
    Sleeper.seconds = seconds

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
        ray.cloudpickle.register_pickle_by_value(module)  # workers do not find them by their names
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
