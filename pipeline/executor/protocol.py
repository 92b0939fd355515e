"""What the driver, the scheduler and the workers exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from diffseg.settings import Dtype
from pipeline.executor.gpu_meter import GpuUse
from pipeline.executor.shard_queue import Task
from pipeline.output.commit import Commit
from pipeline.readers.samples import Shard
from pipeline.settings import LabelSettings, WorkerSettings
from pipeline.storage import Storage


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a worker needs to start.

    Attributes:
        settings: What determines the labels.
        worker: How the worker runs.
        source: Options for the stores of the shards and of the model.
        out: OUT.
        listing: Digest of the run's listing of SRC, for the fence between runs in one OUT.
    """

    settings: LabelSettings
    worker: WorkerSettings
    source: Storage
    out: Storage
    listing: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkerReport:
    """What a worker reports once its model is loaded.

    Attributes:
        model_sha256: Digest of the model's files.
        resolved: Values that the checkpoint filled in.
        fingerprint: Fingerprint of everything that determines the labels.
        environment: What may change the last bits of a float.
        host: Name of the worker's host.
        pid: Process id of the worker.
        dtype: Type of the weights, which the worker chose if the settings leave it open; "" if they do not.
        startup_seconds: How long the worker took to load its model and, if asked to, to compile it.
        gpu: Name of the worker's GPU; "" on a CPU.
    """

    model_sha256: str
    resolved: Mapping[str, Any]
    fingerprint: str
    environment: Mapping[str, Any]
    host: str
    pid: int = 0
    dtype: Dtype | Literal[""] = ""
    startup_seconds: float = 0.0
    gpu: str = ""


@dataclass(frozen=True, kw_only=True)
class WorkerProgress:
    """How far a worker is with its shard, and how much memory it uses.

    Attributes:
        samples: Samples of the shard that have a row.
        waiting: Which store the worker is waiting for, as a phrase; "" if none.
        rss: Resident memory in bytes.
        gpu_memory: Bytes that torch holds on the GPU.
        gpu: The use of the GPU by all processes; None if it is not known.
    """

    samples: int
    waiting: str
    rss: int = 0
    gpu_memory: int = 0
    gpu: GpuUse | None = None


class Worker(Protocol):
    """What the driver requires of a worker. `progress` is called in another thread while `label` runs."""

    def load(self, job: Job) -> WorkerReport:
        """Load the model. Called once, before any shard."""

    def label(self, shard: Shard, attempt: int) -> Commit:
        """Label and commit one shard."""

    def progress(self) -> WorkerProgress:
        """Return how far the current shard is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInFlight:
    """A shard that a worker is labelling.

    Attributes:
        shard: Name of the shard.
        attempt: Number of the attempt, from 1.
        since: Start of the attempt, in seconds of `time.monotonic`.
        worker: Host and process id of the worker, ``host:pid``.
        progress: The worker's last progress report.
    """

    shard: str
    attempt: int
    since: float
    worker: str
    progress: WorkerProgress


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """The workers and shards of a run at one moment.

    Attributes:
        ready: Workers that have loaded their model.
        requested: Workers that the run has requested.
        waiting: Shards that no worker has.
        in_flight: Shards that a worker has.
    """

    ready: int
    requested: int
    waiting: int
    in_flight: Sequence[ShardInFlight]

    @property
    def samples(self) -> int:
        """Samples of the shards in flight that have a row."""
        return sum(shard.progress.samples for shard in self.in_flight)

    @property
    def stores_waited_for(self) -> list[str]:
        """One phrase for each worker that is waiting for a store."""
        return [shard.progress.waiting for shard in self.in_flight if shard.progress.waiting]


class Recorder(Protocol):
    """What the scheduler reports the events of a run to."""

    def worker_ready(self, report: WorkerReport) -> None:
        """Record that a worker has loaded its model. Raises RunRefused if the worker does not belong to this run."""

    def shard_committed(self, commit: Commit) -> None:
        """Record that a shard is done."""

    def attempt_failed(self, task: Task, error: BaseException, *, will_retry: bool) -> None:
        """Record that an attempt failed, and the shard too unless it is retried.

        Raises RunFailed if the run cannot continue.
        """

    def node_set_aside(self, node: str, reason: str) -> None:
        """Record that a node gets no more workers."""

    def update(self, state: RunState) -> None:
        """Record the state of the run; called twice a second."""
