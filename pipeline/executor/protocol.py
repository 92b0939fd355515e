"""What the driver, the scheduler and the workers exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.executor.shard_queue import Task
from pipeline.output.commit import Commit
from pipeline.readers.samples import Shard
from pipeline.settings import LabelSettings, WorkerSettings
from pipeline.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a worker must be told. source: how the stores of the shards and of the model are reached."""

    settings: LabelSettings
    worker: WorkerSettings
    source: Storage
    out: Storage


@dataclass(frozen=True, kw_only=True)
class WorkerReport:
    """What a worker says of itself once its model is loaded."""

    model_sha256: str
    resolved: Mapping[str, Any]
    fingerprint: str
    environment: Mapping[str, Any]
    host: str
    pid: int = 0


@dataclass(frozen=True, kw_only=True)
class WorkerProgress:
    """How far a worker is with the shard in hand, and what it takes.

    samples: that have a row by now. waiting: the store that does not answer, "" for none. rss: bytes of resident
    memory. gpu_memory: bytes that torch holds on the GPU.
    """

    samples: int
    waiting: str
    rss: int = 0
    gpu_memory: int = 0


class Worker(Protocol):
    """What the driver asks of a worker; ``label`` runs in one thread while ``progress`` is asked for in another."""

    def load(self, job: Job) -> WorkerReport:
        """Get ready for a job; called once, before any shard."""

    def label(self, shard: Shard, attempt: int) -> Commit:
        """Label and commit one shard."""

    def progress(self) -> WorkerProgress:
        """How far it is."""


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
