"""Records the events of a run: guards run.json, writes the records of failed shards, and keeps totals."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from dataclasses import dataclass, field

from pipeline.errors import RunFailed, RunRefused, WorkerLost
from pipeline.executor import metrics
from pipeline.executor.progress_bar import ProgressBar
from pipeline.executor.progress_file import ProgressFile
from pipeline.executor.protocol import Job, RunState, WorkerReport
from pipeline.executor.shard_queue import Task
from pipeline.output.commit import Commit, delete_commit, write_commit
from pipeline.output.manifest import Manifest, check_same_run, create_manifest, read_manifest, write_manifest
from pipeline.output.plan import Plan
from pipeline.readers.samples import Shard
from pipeline.storage import StoreUnavailable, redact
from pipeline.storage.urls import split_url

log = logging.getLogger(__name__)

PROBE_SECONDS = 30.0
"""How long the driver itself tries to reach a store that a worker could not reach."""


@dataclass(kw_only=True)
class RunRecorder:
    """The `Recorder` of a run. It keeps totals instead of records, because a run may have millions of shards.

    Use it as a context manager, so that progress.json and the metrics say when the run is over.

    Attributes:
        job: What the workers get.
        source: SRC, without secrets.
        plan: The plan of the run; failures that are labelled now are removed from it.
        before: run.json of OUT before this run, None if there was none.
        progress: Progress on the console.
        fingerprint: Fingerprint of the run; None until the first worker is ready.
        counts: Rows by status that this run has committed.
        seconds: Seconds by step of the shards that this run has committed.
        failed: Errors of the shards that failed in all their attempts, by name.
    """

    job: Job
    source: str
    plan: Plan
    before: Manifest | None
    progress: ProgressBar
    fingerprint: str | None = None
    counts: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._file = ProgressFile(self.job.out, todo=len(self.plan.todo))

    def __enter__(self) -> RunRecorder:
        if self.before is not None and self.plan.todo:
            self._file.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close("ended" if kind is None else "stopped")
        metrics.measure_run(RunState(ready=0, requested=0, waiting=0, in_flight=()))

    def worker_ready(self, report: WorkerReport) -> None:
        if self.fingerprint is not None:
            if report.fingerprint != self.fingerprint:
                raise RunRefused(f"the checkpoint on {report.host} differs from the one that this run started with")
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
            self.before = read_manifest(out)  # another run was started at the same moment
        if self.before is not None:
            for difference in check_same_run(self.before, now, out):
                log.warning("resuming in another environment, so a few pixels may differ: %s", difference)
            write_manifest(out, now)
        self.fingerprint = report.fingerprint
        self._file.start()

    def shard_committed(self, commit: Commit) -> None:
        self.counts.update(commit.counts)
        self.seconds.update(commit.seconds)
        if failure := self.plan.failures.pop(commit.shard, None):
            delete_commit(self.job.out, failure)
        self.progress.shard_finished(commit.rows)
        self._file.shard_committed(commit.shard, commit.rows)
        metrics.count_commit(commit)
        log.info(
            "shard %s is done: %d rows in %.1f s",
            *(commit.shard, commit.rows, commit.finished - commit.started),
            extra={"shard": commit.shard, "attempt": commit.attempt, "rows": commit.rows, "worker": commit.worker},
        )

    def attempt_failed(self, task: Task, error: BaseException, *, will_retry: bool) -> None:
        text = redact(str(error) if isinstance(error, WorkerLost) else f"{type(error).__name__}: {error}")
        name = task.shard.name
        then = ", it will be retried" if will_retry else ""
        log_fields = {"shard": name, "attempt": task.attempt}
        log.warning("attempt %d at shard %s failed%s: %s", task.attempt, name, then, text, extra=log_fields)
        metrics.count_failed_attempt(will_retry=will_retry)
        if isinstance(error, StoreUnavailable):
            self._fail_if_stores_are_unreachable(task.shard)
        if will_retry:
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
        self._file.shard_failed(name)

    def update(self, state: RunState) -> None:
        self.progress.update(state)
        self._file.update(state)
        metrics.measure_run(state)

    def _fail_if_stores_are_unreachable(self, shard: Shard) -> None:
        """End the run if the driver cannot reach the stores either; else the failure is that of one shard.

        Raises:
            RunFailed: The store of the shard or of OUT does not answer.
        """
        folder = shard.url if shard.kind == "images" else split_url(shard.url)[0]
        for storage in (self.job.source.at(folder), self.job.out):
            probe = dataclasses.replace(storage, retry_timeout=min(PROBE_SECONDS, storage.retry_timeout))
            try:
                probe.exists()
            except StoreUnavailable as error:
                raise RunFailed(f"{error}; run the same command again to resume") from error
            except OSError:
                continue  # the store answers
