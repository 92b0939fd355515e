"""What becomes of a run as its workers report: the manifest is guarded, failures are recorded, totals are kept."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from dataclasses import dataclass, field

from pipeline.errors import RunFailed, RunRefused, WorkerLost
from pipeline.executor import metrics
from pipeline.executor.progress_bar import RunProgress
from pipeline.executor.progress_file import ProgressFile
from pipeline.executor.protocol import Job, PoolState, WorkerReport
from pipeline.executor.shard_queue import Task
from pipeline.output.commit import Commit, delete_commit, write_commit
from pipeline.output.manifest import Manifest, check_same_run, create_manifest, read_manifest, write_manifest
from pipeline.output.plan import Plan
from pipeline.readers.samples import Shard
from pipeline.storage import StoreUnavailable, redact
from pipeline.storage.urls import split_url

log = logging.getLogger(__name__)

PROBE_SECONDS = 30.0
"""How long the driver itself tries to reach a store that a worker could not."""


@dataclass(kw_only=True)
class RunObserver:
    """Of one run; its methods are those of ``pool.Observer``. Totals, not records, are kept: shards may be millions.

    Use as a context manager: OUT's progress.json says when the run is over, and so do the metrics.
    """

    job: Job
    source: str
    plan: Plan
    before: Manifest | None
    progress: RunProgress
    fingerprint: str | None = None
    counts: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._file = ProgressFile(self.job.out, todo=len(self.plan.todo))

    def __enter__(self) -> RunObserver:
        if self.before is not None and self.plan.todo:
            self._file.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close("ended" if kind is None else "stopped")
        metrics.measure_pool(PoolState(ready=0, asked=0, waiting=0, in_hand=()))

    def ready(self, report: WorkerReport) -> None:
        if self.fingerprint is not None:
            if report.fingerprint != self.fingerprint:
                raise RunRefused(f"the checkpoint on {report.host} differs from the one that this run began with")
            return
        out = self.job.out
        now = Manifest(
            source=self.source,
            settings=self.job.settings.plain(),
            model_sha256=report.model_sha256,
            resolved=report.resolved,
            environment=report.environment,
            fingerprint=report.fingerprint,
            shards=self.plan.shards,
        )
        if self.before is None and not create_manifest(out, now):
            self.before = read_manifest(out)  # another run has begun in the same moment
        if self.before is not None:
            for difference in check_same_run(self.before, now, out):
                log.warning("resuming with another environment, so single pixels may differ: %s", difference)
            write_manifest(out, now)
        self.fingerprint = report.fingerprint
        self._file.begin()

    def committed(self, commit: Commit) -> None:
        self.counts.update(commit.counts)
        self.seconds.update(commit.seconds)
        if failure := self.plan.failures.pop(commit.shard, None):
            delete_commit(self.job.out, failure)
        self.progress.shard_finished(commit.rows)
        self._file.committed(commit.shard, commit.rows)
        metrics.count_commit(commit)
        log.info(
            "shard %s is done: %d rows in %.1f s",
            *(commit.shard, commit.rows, commit.finished - commit.started),
            extra={"shard": commit.shard, "attempt": commit.attempt, "rows": commit.rows, "worker": commit.worker},
        )

    def attempt_failed(self, task: Task, error: BaseException, *, again: bool) -> None:
        text = redact(str(error) if isinstance(error, WorkerLost) else f"{type(error).__name__}: {error}")
        name = task.shard.name
        then = ", it will be tried again" if again else ""
        where = {"shard": name, "attempt": task.attempt}
        log.warning("attempt %d at shard %s failed%s: %s", task.attempt, name, then, text, extra=where)
        metrics.count_failed_attempt(again=again)
        if isinstance(error, StoreUnavailable):
            self._fail_if_stores_are_gone(task.shard)
        if again:
            return
        assert self.fingerprint is not None
        record = Commit(
            shard=name,
            state="failed",
            fingerprint=self.fingerprint,
            attempt=task.attempt,
            inputs=task.shard.digest(),
            error=text,
            transient=isinstance(error, (OSError, WorkerLost, MemoryError)),
            finished=time.time(),
        )
        write_commit(self.job.out, record)
        self.failed[name] = text
        self.progress.shard_finished(0)
        self._file.gave_up(name)

    def working(self, state: PoolState) -> None:
        self.progress.working(state)
        self._file.working(state)
        metrics.measure_pool(state)

    def _fail_if_stores_are_gone(self, shard: Shard) -> None:
        """One worker's store trouble is its shard's; a store that the driver cannot reach either ends the run."""
        folder = shard.url if shard.kind == "images" else split_url(shard.url)[0]
        for storage in (self.job.source.at(folder), self.job.out):
            probe = dataclasses.replace(storage, retry_timeout=min(PROBE_SECONDS, storage.retry_timeout))
            try:
                probe.exists()
            except StoreUnavailable as error:
                raise RunFailed(f"{error}; the same command goes on where this run stopped") from error
            except OSError:
                continue  # it answers
