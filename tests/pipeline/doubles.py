"""Workers without a model, which test how the driver handles shards, attempts and actors."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

from pipeline.errors import RunTakenOver
from pipeline.executor.protocol import Job, WorkerProgress, WorkerReport
from pipeline.output.commit import Commit, write_commit
from pipeline.output.manifest import versions
from pipeline.readers.samples import Shard, ShardError
from pipeline.storage import StoreUnavailable


class Sleeper:
    """Sleeps for `seconds` and commits a shard of 10,000 rows, or fails in the way that the shard's name says."""

    seconds = 0.0

    def load(self, job: Job) -> WorkerReport:
        self.job = job
        environment = {"versions": versions()}
        return WorkerReport(model_sha256="m", resolved={}, fingerprint="f", environment=environment, host="here")

    def label(self, shard: Shard, attempt: int) -> Commit:
        started = time.time()
        time.sleep(self.seconds)
        self.misbehave(shard, attempt)
        counts = {"ok": 9_990, "unreadable": 10} if shard.name.startswith("unreadable") else {"ok": 10_000}
        commit = Commit(
            shard=shard.name,
            state="done",
            fingerprint="f",
            attempt=attempt,
            inputs=shard.digest(),
            rows=10_000,
            counts=counts,
            seconds={"unet": self.seconds, "total": self.seconds},
            started=started,
            finished=time.time(),
            worker=self.location(),
        )
        write_commit(self.job.out, commit)
        return commit

    def location(self) -> str:
        return f"{os.getpid()}"

    def progress(self) -> WorkerProgress:
        return WorkerProgress(samples=0, waiting="")

    def misbehave(self, shard: Shard, attempt: int) -> None:
        kind = shard.name.partition("-")[0]
        if kind == "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "once" and attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "broken":
            raise ShardError(shard.url, "this is not a tar")
        if kind == "device":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if kind == "overtaken":
            raise RunTakenOver("another run with a newer listing of SRC has taken over OUT")
        if kind == "meet":
            self.meet(shard.name)
        if kind == "sleeps":
            time.sleep(600)
        if kind == "memory":
            raise MemoryError
        if kind == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scratch/diffseg")
        if kind == "gone":
            raise StoreUnavailable(f"{shard.url}: the store has not answered for 300 s")
        if kind == "hungry":
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(2**20)) * 64)

    def meet(self, name: str) -> None:
        """Wait until three such shards are in flight, which needs three workers with one shard each."""
        folder, end = f"{self.job.out.url}/meeting", time.monotonic() + 540
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/{name}", "w"):
            pass
        while len(os.listdir(folder)) < 3:
            if time.monotonic() > end:
                raise TimeoutError("three shards were never in flight at the same time")
            time.sleep(0.05)


class LateStarter(Sleeper):
    """The first worker of a run fails to load its model."""

    def load(self, job: Job) -> WorkerReport:
        marker = Path(job.out.url).with_name("failed once")
        if not marker.exists():
            marker.touch()
            raise RuntimeError("the hub is unreachable")
        return super().load(job)


class Holder:
    """Another job, which holds the resources of its actor."""

    def ready(self) -> None:
        """Return once the actor has its resources."""
