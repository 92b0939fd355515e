"""What a run counts and measures on Ray's Prometheus endpoint; nothing at all where there is no Ray.

The driver counts rows, shards and steps from commit records, so that nothing counts twice and nothing is lost with a
worker, and measures the queue. Workers count images at the moment that they are labelled, and measure their memory. No
label has more values than there are statuses, outcomes or steps; Ray adds the node, the process and the session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pipeline.executor.protocol import PoolState, WorkerProgress
    from pipeline.output.commit import Commit

SECONDS = tuple(digit * 10.0**power for power in range(-3, 2) for digit in (1, 2, 5))
"""Upper bounds of the histogram's buckets, from a millisecond to 50 s an image."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric. counter: a sum; gauge: a value of now; histogram: of SECONDS. tags: names of its labels."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    description: str
    tags: tuple[str, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """Its names in Prometheus; not a histogram's sum, which Ray makes of the middles of the buckets."""
        suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count")}
        return tuple(f"ray_{self.name}{suffix}" for suffix in suffixes[self.kind])

    def record(self, value: float, **tags: str) -> None:
        """Add to a counter, set a gauge, or observe; nothing where this process is not connected to a Ray."""
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
    description="Samples that workers gave a row, as they did it; again where an attempt failed and was made again",
)
ROWS = Metric(
    name="diffseg_rows",
    kind="counter",
    unit="rows",
    description="Rows of committed shards by status, each once",
    tags=("status",),
)
SHARDS = Metric(
    name="diffseg_shards",
    kind="counter",
    unit="shards",
    description="Shards by outcome: done, attempt_failed (it is tried again) or failed (for good)",
    tags=("outcome",),
)
STEP_SECONDS = Metric(
    name="diffseg_step_seconds",
    kind="histogram",
    unit="seconds",
    description="Seconds an image, one mean a committed shard, by step; total is the wall time",
    tags=("step",),
)
SHARDS_WAITING = Metric(
    name="diffseg_shards_waiting", kind="gauge", unit="shards", description="Shards that no worker has yet"
)
SHARDS_IN_HAND = Metric(
    name="diffseg_shards_in_hand", kind="gauge", unit="shards", description="Shards that a worker has now"
)
WORKERS_READY = Metric(
    name="diffseg_workers_ready", kind="gauge", unit="workers", description="Workers with a model loaded"
)
WORKERS_ASKED = Metric(
    name="diffseg_workers_asked", kind="gauge", unit="workers", description="Workers that the run has asked Ray for"
)
WORKER_RSS = Metric(
    name="diffseg_worker_rss_bytes", kind="gauge", unit="bytes", description="Resident memory of a worker's process"
)
WORKER_GPU_MEMORY = Metric(
    name="diffseg_worker_gpu_memory_bytes",
    kind="gauge",
    unit="bytes",
    description="GPU memory that a worker's torch holds; 0 on a CPU",
)

METRICS = (
    IMAGES,
    ROWS,
    SHARDS,
    STEP_SECONDS,
    SHARDS_WAITING,
    SHARDS_IN_HAND,
    WORKERS_READY,
    WORKERS_ASKED,
    WORKER_RSS,
    WORKER_GPU_MEMORY,
)


def count_commit(commit: Commit) -> None:
    """A shard is done."""
    SHARDS.record(1, outcome="done")
    for status, rows in commit.counts.items():
        ROWS.record(rows, status=status)
    if commit.rows:
        for step, seconds in commit.seconds.items():
            STEP_SECONDS.record(seconds / commit.rows, step=step)


def count_failed_attempt(*, again: bool) -> None:
    """An attempt failed, and is made again or was the last."""
    SHARDS.record(1, outcome="attempt_failed" if again else "failed")


def measure_pool(state: PoolState) -> None:
    """What the driver knows of its workers and its queue."""
    SHARDS_WAITING.record(state.waiting)
    SHARDS_IN_HAND.record(len(state.in_hand))
    WORKERS_READY.record(state.ready)
    WORKERS_ASKED.record(state.asked)


def measure_worker(progress: WorkerProgress) -> None:
    """What a worker knows of itself."""
    WORKER_RSS.record(progress.rss)
    WORKER_GPU_MEMORY.record(progress.gpu_memory)
