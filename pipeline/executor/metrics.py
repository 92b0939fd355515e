"""The metrics of a run on Ray's Prometheus endpoint. Without Ray nothing is recorded.

The driver counts rows, shards and steps from commit records, so that nothing is counted twice or lost with a worker,
and measures the queue. Workers count images as they label them, and measure their memory and their GPU. No label has
more values than there are statuses, outcomes or steps; Ray adds the node, the process and the session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pipeline.executor.protocol import RunState, WorkerProgress
    from pipeline.output.commit import Commit

SECONDS = tuple(digit * 10.0**power for power in range(-3, 2) for digit in (1, 2, 5))
"""Upper bounds of the histogram's buckets, from 1 ms to 50 s per image."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        name: Name in Ray; Prometheus adds a prefix and a suffix.
        kind: A counter is a sum, a gauge a current value, and a histogram has the buckets `SECONDS`.
        unit: Unit of the values.
        description: Help text in Prometheus.
        tags: Names of the labels.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    description: str
    tags: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """Names in Prometheus, without a histogram's sum, which Ray estimates from the middles of the buckets."""
        suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count")}
        return tuple(f"ray_{self.name}{suffix}" for suffix in suffixes[self.kind])

    def record(self, value: float, **tags: str) -> None:
        """Add to a counter, set a gauge or observe a value. Does nothing if this process is not connected to Ray."""
        import ray

        if ray.is_initialized() and (value or self.kind != "counter"):
            _instrument(self)(value, tags)


@cache
def _instrument(metric: Metric) -> Callable[[float, dict[str, str]], None]:
    from ray.util.metrics import Counter, Gauge, Histogram

    if metric.kind == "counter":
        return Counter(metric.name, metric.description, metric.tags).inc
    if metric.kind == "gauge":
        return Gauge(metric.name, metric.description, metric.tags).set
    return Histogram(metric.name, metric.description, list(SECONDS), metric.tags).observe


IMAGES = Metric(
    name="diffseg_images",
    kind="counter",
    unit="images",
    description="Samples that workers have labelled, when they did so; a retried shard counts its samples again",
)
ROWS = Metric(
    name="diffseg_rows",
    kind="counter",
    unit="rows",
    description="Rows of committed shards by status, each counted once",
    tags=("status",),
)
SHARDS = Metric(
    name="diffseg_shards",
    kind="counter",
    unit="shards",
    description="Shards by outcome: done, attempt_failed (will be retried) or failed (in all attempts)",
    tags=("outcome",),
)
STEP_SECONDS = Metric(
    name="diffseg_step_seconds",
    kind="histogram",
    unit="seconds",
    description="Seconds per image by step, one mean per committed shard; total is wall time",
    tags=("step",),
)
SHARDS_WAITING = Metric(
    name="diffseg_shards_waiting", kind="gauge", unit="shards", description="Shards that are waiting for a worker"
)
SHARDS_IN_FLIGHT = Metric(
    name="diffseg_shards_in_hand", kind="gauge", unit="shards", description="Shards that a worker is labelling"
)
WORKERS_READY = Metric(
    name="diffseg_workers_ready", kind="gauge", unit="workers", description="Workers that have loaded their model"
)
WORKERS_REQUESTED = Metric(
    name="diffseg_workers_asked", kind="gauge", unit="workers", description="Workers that the run has requested"
)
WORKER_RSS = Metric(
    name="diffseg_worker_rss_bytes", kind="gauge", unit="bytes", description="Resident memory of a worker process"
)
WORKER_GPU_MEMORY = Metric(
    name="diffseg_worker_gpu_memory_bytes",
    kind="gauge",
    unit="bytes",
    description="GPU memory that torch holds in a worker; 0 on a CPU",
)
WORKER_GPU_UTILISATION = Metric(
    name="diffseg_worker_gpu_utilisation_ratio",
    kind="gauge",
    unit="ratio",
    description="Share of the time in which the GPU of a worker computes, 0 to 1; needs nvidia-ml-py",
)
WORKER_GPU_MEMORY_SHARE = Metric(
    name="diffseg_worker_gpu_memory_ratio",
    kind="gauge",
    unit="ratio",
    description="Share of the memory of a worker's GPU that all processes use, 0 to 1; needs nvidia-ml-py",
)

METRICS = (
    IMAGES,
    ROWS,
    SHARDS,
    STEP_SECONDS,
    SHARDS_WAITING,
    SHARDS_IN_FLIGHT,
    WORKERS_READY,
    WORKERS_REQUESTED,
    WORKER_RSS,
    WORKER_GPU_MEMORY,
    WORKER_GPU_UTILISATION,
    WORKER_GPU_MEMORY_SHARE,
)


def count_commit(commit: Commit) -> None:
    """Count a shard that is done, with its rows and steps."""
    SHARDS.record(1, outcome="done")
    for status, rows in commit.counts.items():
        ROWS.record(rows, status=status)
    if commit.rows:
        for step, seconds in commit.seconds.items():
            STEP_SECONDS.record(seconds / commit.rows, step=step)


def count_failed_attempt(*, will_retry: bool) -> None:
    """Count an attempt that failed and will be retried, or a shard that failed in its last attempt."""
    SHARDS.record(1, outcome="attempt_failed" if will_retry else "failed")


def measure_run(state: RunState) -> None:
    """Record what the driver knows about its workers and its queue."""
    SHARDS_WAITING.record(state.waiting)
    SHARDS_IN_FLIGHT.record(len(state.in_flight))
    WORKERS_READY.record(state.ready)
    WORKERS_REQUESTED.record(state.requested)


def measure_worker(progress: WorkerProgress) -> None:
    """Record the memory of a worker, and the use of its GPU if that is known."""
    WORKER_RSS.record(progress.rss)
    WORKER_GPU_MEMORY.record(progress.gpu_memory)
    if progress.gpu is not None:
        WORKER_GPU_UTILISATION.record(progress.gpu.utilisation)
        WORKER_GPU_MEMORY_SHARE.record(progress.gpu.memory)
