"""`diffseg label` with workers that sleep instead of label: `python sleepers.py SECONDS SRC OUT …`.

Each records the id of its node and of its process where a shard's record names the worker.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import ray
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[2] / "pipeline"))

import doubles

import pipeline.executor.scheduler
from jobs.common import guarded
from jobs.label import parse
from pipeline.executor.driver import label_run

HEAD_SECONDS = 8.0
"""Of silence until a run ends; 40 in the product."""


class Sleeper(doubles.Sleeper):
    """On a node."""

    def location(self) -> str:
        return f"{ray.get_runtime_context().get_node_id()} {os.getpid()}"

    def misbehave(self, shard: object, attempt: int) -> None:
        """Nothing here."""


def main(seconds: float, argv: list[str]) -> int:
    """A run whose shards take so many seconds each; the exit code of the command."""
    command = parse(argv)
    Sleeper.seconds = seconds
    pipeline.executor.scheduler.HEAD_SECONDS = HEAD_SECONDS

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
        return 1 if summary.failed else 0

    return guarded(run)


if __name__ == "__main__":
    for module in (sys.modules[__name__], doubles):
        ray.cloudpickle.register_pickle_by_value(module)  # workers do not find them by their names
    began = time.monotonic()
    code = main(float(sys.argv[1]), sys.argv[2:])
    print(f"ended after {time.monotonic() - began:.1f} s", file=sys.stderr)
    sys.exit(code)
