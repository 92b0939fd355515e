"""progress.json: the state of a run as its driver last wrote it, for anyone who looks at OUT from another machine.

The small file is written at intervals in a thread of its own, so that the run never waits for the store.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import psutil

from pipeline.bounded_json import InvalidFile, read_bounded, struct_fields
from pipeline.errors import RunRefused
from pipeline.executor.protocol import RunState, WorkerReport
from pipeline.executor.rate_meter import RateMeter
from pipeline.output.manifest import PROGRESS_PATH
from pipeline.output.schemas import DOCUMENT_BYTES, parse_progress
from pipeline.storage import Storage, redact

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 15.0
STALE_SECONDS = 6 * INTERVAL_SECONDS
"""A driver that has not written for this long is presumed dead."""
CLOCK_SECONDS = 2.0
"""Largest difference between the creation time that the system reports for a process and the clock."""
WRITE_TIMEOUT_SECONDS = 4.0
"""How long one write is retried."""
CLOSE_SECONDS = 5.0
"""How long the end of a run waits for the last write."""

State = Literal["running", "ended", "stopped"]

_JSON_KEYS = {"in_flight": "in_hand"}
"""Keys of the JSON that differ from the names of the attributes."""


@dataclass(frozen=True, kw_only=True)
class ProgressReport:
    """The content of progress.json.

    Attributes:
        state: "running", "ended", or "stopped" if the run ended before its shards did.
        written: When the file was written, in seconds since the epoch.
        started: When the run was started, in seconds since the epoch.
        host: Host of the driver.
        pid: Process id of the driver.
        todo: Shards that this run had to label when it started.
        done: Shards that it has labelled.
        failed: Shards that failed in all their attempts.
        waiting: Shards that no worker has.
        images: Images that this run has labelled, including those of shards in flight.
        rate: Images per second over the last `rate_seconds`; None before the first worker is ready.
        rate_seconds: Time that `rate` refers to.
        left: Estimate of the seconds that remain; None before the first shard is done.
        workers_ready: Workers that have loaded their model.
        workers_asked: Workers that the run has requested.
        in_flight: ``{shard, attempt, worker, seconds, samples, waiting}`` of each shard in flight, longest first.
        driver_rss: Resident memory of the driver in bytes.
        worker_rss: Largest resident memory of any worker so far, in bytes.
        gpu_memory: Largest GPU memory of any worker so far, in bytes.
        gpu_utilisation: Share of the time in which a GPU computes, 0 to 1: the mean over the workers, as they last
            reported it; None if it is not known.
        gpu_memory_share: Share of a GPU's memory that is in use, 0 to 1, likewise; the largest of any worker.
        startup_seconds: Longest time that a worker took to load its model and, with --compile, to compile it; None
            before the first worker is ready.
        nodes: ``{workers, gpu}`` of each host: how many workers have become ready there, and the name of their GPU.
    """

    state: State
    written: float
    started: float
    host: str
    pid: int
    todo: int
    done: int
    failed: int
    waiting: int
    images: int
    rate: float | None
    rate_seconds: float
    left: float | None
    workers_ready: int
    workers_asked: int
    in_flight: Sequence[Mapping[str, Any]]
    driver_rss: int
    worker_rss: int
    gpu_memory: int
    gpu_utilisation: float | None = None
    gpu_memory_share: float | None = None
    startup_seconds: float | None = None
    nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def age(self) -> float:
        """Return the seconds since the file was written, by this machine's clock."""
        return max(0.0, time.time() - self.written)

    def is_stale(self) -> bool:
        """Return True if a driver that claims to be running has not written for `STALE_SECONDS`."""
        return self.state == "running" and self.age() > STALE_SECONDS

    def may_be_running(self) -> bool:
        """Return True unless the driver has ended, has not written for `STALE_SECONDS`, or is known to be dead."""
        if self.state != "running" or self.is_stale():
            return False
        if self.host != socket.gethostname():
            return True
        try:
            return psutil.Process(self.pid).create_time() <= self.started + CLOCK_SECONDS
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:  # a process of another user
            return True

    def to_dict(self) -> dict[str, Any]:
        """Return the values by their JSON keys."""
        return {_JSON_KEYS.get(name, name): value for name, value in dataclasses.asdict(self).items()}


def read_progress(out: Storage) -> ProgressReport | None:
    """Read progress.json of OUT; None if it is missing, or damaged, which a warning says."""
    try:
        return ProgressReport(**struct_fields(parse_progress(read_bounded(out, PROGRESS_PATH, DOCUMENT_BYTES))))
    except FileNotFoundError:
        return None
    except InvalidFile as error:
        log.warning("%s is ignored: %s", out.joined(PROGRESS_PATH), error)
        return None


def refuse_if_running(out: Storage) -> None:
    """Check that no run is at work in OUT, before its files are deleted.

    Raises:
        RunRefused: The driver of a run has written progress.json a short time ago, and may be alive.
    """
    report = read_progress(out)
    if report is None or not report.may_be_running():
        return
    written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(report.written))
    raise RunRefused(
        f"{out.redacted}: a run is at work here, on {report.host} as process {report.pid}; its last report is from "
        f"{written}, {report.age():.0f} s ago. Stop it before you pass --overwrite. A driver that was killed is "
        f"presumed dead {STALE_SECONDS:.0f} s after its last report"
    )


class ProgressFile:
    """Keeps progress.json up to date from what the driver reports. Nothing is written before `start`."""

    def __init__(self, out: Storage, *, todo: int) -> None:
        self._out = dataclasses.replace(out, retry_timeout=min(WRITE_TIMEOUT_SECONDS, out.retry_timeout))
        self._todo = todo
        self._state: State = "running"
        self._run = RunState(ready=0, requested=0, waiting=todo, in_flight=())
        self._done = self._failed = self._done_images = 0
        self._worker_rss = self._gpu_memory = 0
        self._gpu_utilisation: float | None = None
        self._gpu_memory_share: float | None = None
        self._startup_seconds: float | None = None
        self.nodes: dict[str, dict[str, Any]] = {}
        self._started = time.time()
        self._rate = RateMeter()
        self._closed = threading.Event()
        self._warned = False
        self._writer = threading.Thread(target=self._keep_writing, name="progress.json", daemon=True)

    def start(self) -> None:
        """Begin writing, once OUT is known to belong to this run."""
        if self._writer.ident is None:
            self._writer.start()

    def worker_ready(self, report: WorkerReport) -> None:
        """Record where a worker has started, and how long that took."""
        self._startup_seconds = max(self._startup_seconds or 0.0, report.startup_seconds)
        workers = self.nodes.get(report.host, {"workers": 0})["workers"] + 1
        self.nodes = {**self.nodes, report.host: {"workers": workers, "gpu": report.gpu}}

    def shard_committed(self, shard: str, images: int) -> None:
        """Record that a shard is done."""
        self._remove_from_flight(shard)
        self._done += 1
        self._done_images += images

    def shard_failed(self, shard: str) -> None:
        """Record that a shard has failed in all its attempts."""
        self._remove_from_flight(shard)
        self._failed += 1

    def update(self, state: RunState) -> None:
        """Record the state of the run."""
        if state.ready:
            self._rate.start()
        self._run = state
        for shard in state.in_flight:
            self._worker_rss = max(self._worker_rss, shard.progress.rss)
            self._gpu_memory = max(self._gpu_memory, shard.progress.gpu_memory)
        if gpus := [shard.progress.gpu for shard in state.in_flight if shard.progress.gpu is not None]:
            self._gpu_utilisation = round(sum(gpu.utilisation for gpu in gpus) / len(gpus), 3)
            self._gpu_memory_share = round(max(gpu.memory for gpu in gpus), 3)

    def close(self, state: State) -> None:
        """Record that the run is over, and wait for at most `CLOSE_SECONDS` until the file says so."""
        self._state = state
        self._run = RunState(ready=0, requested=0, waiting=self._todo - self._done - self._failed, in_flight=())
        self._closed.set()
        if self._writer.is_alive():
            self._writer.join(CLOSE_SECONDS)

    def _remove_from_flight(self, shard: str) -> None:
        """Forget a finished shard before the next update, so that no image is counted twice."""
        remaining = [other for other in self._run.in_flight if other.shard != shard]
        self._run = dataclasses.replace(self._run, in_flight=remaining)

    def _keep_writing(self) -> None:
        self._write()
        while not self._closed.wait(INTERVAL_SECONDS):
            self._write()
        self._write()

    def _write(self) -> None:
        try:
            text = json.dumps(self._report().to_dict(), indent=1, sort_keys=True)
            self._out.write_bytes(PROGRESS_PATH, text.encode() + b"\n")
        except Exception as error:  # the run must not fail because its progress cannot be written
            if not self._warned:
                log.warning("%s cannot be written, so `status` is out of date: %s", PROGRESS_PATH, redact(str(error)))
            self._warned = True

    def _report(self) -> ProgressReport:
        run, now = self._run, time.monotonic()
        images = self._done_images + run.samples
        rate, seconds = self._rate.measure(now, images)
        in_flight = [
            {
                "shard": shard.shard,
                "attempt": shard.attempt,
                "worker": shard.worker,
                "seconds": round(now - shard.since, 1),
                "samples": shard.progress.samples,
                "waiting": shard.progress.waiting,
            }
            for shard in sorted(run.in_flight, key=lambda shard: shard.since)
        ]
        return ProgressReport(
            state=self._state,
            written=time.time(),
            started=self._started,
            host=socket.gethostname(),
            pid=os.getpid(),
            todo=self._todo,
            done=self._done,
            failed=self._failed,
            waiting=run.waiting,
            images=images,
            rate=rate,
            rate_seconds=round(seconds, 3),
            left=self._seconds_left(rate, run),
            workers_ready=run.ready,
            workers_asked=run.requested,
            in_flight=in_flight,
            driver_rss=psutil.Process().memory_info().rss,
            worker_rss=self._worker_rss,
            gpu_memory=self._gpu_memory,
            gpu_utilisation=self._gpu_utilisation,
            gpu_memory_share=self._gpu_memory_share,
            startup_seconds=self._startup_seconds,
            nodes=self.nodes,
        )

    def _seconds_left(self, rate: float | None, run: RunState) -> float | None:
        """Estimate the remaining seconds, assuming that the remaining shards are as large as the done ones."""
        if not (rate and self._done):
            return None
        images_per_shard = self._done_images / self._done
        return max(0.0, (self._todo - self._done - self._failed) * images_per_shard - run.samples) / rate
