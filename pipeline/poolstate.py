"""What a run's workers are doing at a moment: for the bar, the metrics and progress.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.worker import WorkerProgress


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
