"""What the pool tells the run: what comes of the shards, and what the workers are doing at a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.executor.shard_queue import Task
from pipeline.executor.worker import WorkerProgress, WorkerReport
from pipeline.output.commit import Commit


@dataclass(frozen=True, kw_only=True, slots=True)
class InHand:
    """A shard that a worker has. attempt: from 1. since: of time.monotonic(). worker: host:pid."""

    shard: str
    attempt: int
    since: float
    worker: str
    progress: WorkerProgress


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolState:
    """ready: workers with a model. asked: workers that are wanted. waiting: shards that no worker has."""

    ready: int
    asked: int
    waiting: int
    in_hand: Sequence[InHand]

    @property
    def samples(self) -> int:
        """Samples of the shards in hand that have a row by now."""
        return sum(one.progress.samples for one in self.in_hand)

    @property
    def stores_waited_for(self) -> list[str]:
        """What each worker waits for that waits, in a phrase."""
        return [one.progress.waiting for one in self.in_hand if one.progress.waiting]


class Observer(Protocol):
    """What the pool tells the run."""

    def ready(self, report: WorkerReport) -> None:
        """A worker has its model loaded. Raises where it does not belong to this run."""

    def committed(self, commit: Commit) -> None:
        """A shard is done."""

    def attempt_failed(self, task: Task, error: BaseException, *, again: bool) -> None:
        """An attempt failed; the shard is tried again, or has failed for good. Raises where the run cannot go on."""

    def working(self, state: PoolState) -> None:
        """Twice a second."""
