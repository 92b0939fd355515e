"""progress.json: what the driver of a run last said of it, for whoever looks at OUT from another machine.

A small file, written now and then in a thread beside the run: whatever the store does, the run does not wait for it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil

from pipeline.executor.protocol import PoolState
from pipeline.output.manifest import PROGRESS_PATH
from pipeline.storage import Storage, redact

log = logging.getLogger(__name__)

EVERY_SECONDS = 15.0
RATE_SECONDS = 300.0
STALE_SECONDS = 6 * EVERY_SECONDS
"""Without a word from a driver for that long, it is not believed to live."""
PATIENCE_SECONDS = 4.0
LAST_WORD_SECONDS = 5.0
"""For which the end of a run waits for the file to say so."""

State = Literal["running", "ended", "stopped"]


@dataclass(frozen=True, kw_only=True)
class ProgressReport:
    """The content of progress.json.

    state: stopped where the run ended before its shards did. written, started: seconds since the epoch. todo: shards
    that this run began with, of which done, failed, waiting. images: that this run labelled, in shards in hand too.
    rate: images a second over the last `rate_seconds`. left: seconds, an estimate. in_hand: {shard, attempt, worker,
    seconds, samples, waiting}, longest first. driver_rss, worker_rss, gpu_memory: bytes; of workers, the largest value
    of any so far.
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
    in_hand: Sequence[Mapping[str, Any]]
    driver_rss: int
    worker_rss: int
    gpu_memory: int

    def age(self) -> float:
        """Seconds since it was written, by this machine's clock."""
        return max(0.0, time.time() - self.written)

    def is_stale(self) -> bool:
        """Whether it says that a driver runs, of which nothing has been heard since."""
        return self.state == "running" and self.age() > STALE_SECONDS


def read_progress(out: Storage) -> ProgressReport | None:
    """What OUT's driver said last; None where there is nothing that can be read."""
    try:
        return ProgressReport(**json.loads(out.read_bytes(PROGRESS_PATH)))
    except (FileNotFoundError, ValueError, TypeError):  # none, or of another version of this program
        return None


class ProgressFile:
    """Told of the run by its driver. Nothing is written before `begin`."""

    def __init__(self, out: Storage, *, todo: int) -> None:
        self._out = dataclasses.replace(out, retry_timeout=min(PATIENCE_SECONDS, out.retry_timeout))
        self._todo = todo
        self._state: State = "running"
        self._pool = PoolState(ready=0, asked=0, waiting=todo, in_hand=())
        self._done = self._failed = self._done_images = 0
        self._worker_rss = self._gpu_memory = 0
        self._started = time.time()
        self._labelling_since: float | None = None  # of time.monotonic(), when the first worker was there
        self._images: deque[tuple[float, int]] = deque()  # images at times of the last RATE_SECONDS; the writer's own
        self._over = threading.Event()
        self._warned = False
        self._writer = threading.Thread(target=self._keep_writing, name="progress.json", daemon=True)

    def begin(self) -> None:
        """OUT belongs to this run, so that a file may be put there."""
        if self._writer.ident is None:
            self._writer.start()

    def committed(self, shard: str, images: int) -> None:
        """A shard is done."""
        self._no_more_in_hand(shard)
        self._done += 1
        self._done_images += images

    def gave_up(self, shard: str) -> None:
        """A shard has failed for good."""
        self._no_more_in_hand(shard)
        self._failed += 1

    def working(self, state: PoolState) -> None:
        """What the workers do now."""
        if state.ready and self._labelling_since is None:
            self._labelling_since = time.monotonic()
        self._pool = state
        for one in state.in_hand:
            self._worker_rss = max(self._worker_rss, one.progress.rss)
            self._gpu_memory = max(self._gpu_memory, one.progress.gpu_memory)

    def close(self, state: State) -> None:
        """The run is over; waits a little until the file says so."""
        self._state = state
        self._pool = PoolState(ready=0, asked=0, waiting=self._todo - self._done - self._failed, in_hand=())
        self._over.set()
        if self._writer.is_alive():
            self._writer.join(LAST_WORD_SECONDS)

    def _no_more_in_hand(self, shard: str) -> None:
        """Until the workers are asked again, so that no image is counted twice."""
        in_hand = [one for one in self._pool.in_hand if one.shard != shard]
        self._pool = dataclasses.replace(self._pool, in_hand=in_hand)

    def _keep_writing(self) -> None:
        self._write()
        while not self._over.wait(EVERY_SECONDS):
            self._write()
        self._write()

    def _write(self) -> None:
        try:
            text = json.dumps(dataclasses.asdict(self._report()), indent=1, sort_keys=True)
            self._out.write_bytes(PROGRESS_PATH, text.encode() + b"\n")
        except Exception as error:  # a run is worth more than the news of it
            if not self._warned:
                log.warning("%s cannot be written, so `status` tells less: %s", PROGRESS_PATH, redact(str(error)))
            self._warned = True

    def _report(self) -> ProgressReport:
        pool, now = self._pool, time.monotonic()
        images = self._done_images + pool.samples
        rate, seconds = self._rate(now, images)
        in_hand = [
            {
                "shard": one.shard,
                "attempt": one.attempt,
                "worker": one.worker,
                "seconds": round(now - one.since, 1),
                "samples": one.progress.samples,
                "waiting": one.progress.waiting,
            }
            for one in sorted(pool.in_hand, key=lambda one: one.since)
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
            waiting=pool.waiting,
            images=images,
            rate=rate,
            rate_seconds=round(seconds, 3),
            left=self._left(rate, pool),
            workers_ready=pool.ready,
            workers_asked=pool.asked,
            in_hand=in_hand,
            driver_rss=psutil.Process().memory_info().rss,
            worker_rss=self._worker_rss,
            gpu_memory=self._gpu_memory,
        )

    def _rate(self, now: float, images: int) -> tuple[float | None, float]:
        """Images a second, and the seconds that this is of; without the wait for the first worker."""
        if self._labelling_since is None:
            return None, 0.0
        self._images.extend([(now, images)] if self._images else [(self._labelling_since, 0), (now, images)])
        while len(self._images) > 2 and self._images[1][0] <= now - RATE_SECONDS:
            self._images.popleft()
        since, before = self._images[0]
        seconds = now - since
        return (max(0.0, (images - before) / seconds) if seconds else None), seconds

    def _left(self, rate: float | None, pool: PoolState) -> float | None:
        """Seconds, if the shards that are left are as large as those that are done."""
        if not (rate and self._done):
            return None
        each = self._done_images / self._done
        return max(0.0, (self._todo - self._done - self._failed) * each - pool.samples) / rate
