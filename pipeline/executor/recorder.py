"""Records the events of a run: guards run.json, writes the records of failed shards, and keeps totals."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import RunFailed, RunRefused, RunTakenOver, WorkerLost
from pipeline.executor import metrics
from pipeline.executor.progress_bar import ProgressBar
from pipeline.executor.progress_file import ProgressFile
from pipeline.executor.protocol import Job, RunState, WorkerReport
from pipeline.executor.shard_queue import Task
from pipeline.output.commit import Commit, delete_commit, write_commit
from pipeline.output.fence import take_over
from pipeline.output.listing import ANY_INPUTS, Listing, read_listing
from pipeline.output.manifest import Manifest, differences, versions_in
from pipeline.output.plan import Plan
from pipeline.output.work import WorkStatistics
from pipeline.readers.samples import Shard
from pipeline.storage import StorageUnwritable, StoreUnavailable, redact
from pipeline.storage.urls import split_url

log = logging.getLogger(__name__)

PROBE_SECONDS = 30.0
"""How long the driver itself tries to reach a store that a worker could not reach."""

MAX_NOTES = 20
"""Shards whose notes the summary shows; the commit records have all of them."""


@dataclass(kw_only=True)
class RunRecorder:
    """The `Recorder` of a run. It keeps totals and paths instead of records, because a run may have millions of shards.

    Use it as a context manager, so that progress.json and the metrics say when the run is over.

    Attributes:
        job: What the workers get.
        source: SRC, without secrets.
        plan: The plan of the run; failures that are labelled now are removed from it.
        listing: The listing of SRC.
        left_out: What SRC holds besides the shards, by kind.
        before: run.json of OUT before this run listed SRC, None if there was none.
        progress: Progress on the console.
        manifest: run.json of this run; None until OUT belongs to it.
        fingerprint: Fingerprint of the run; None until the first worker is ready.
        counts: Rows by status that this run has committed.
        seconds: Seconds by step of the shards that this run has committed.
        failed: Errors of the shards that failed in all their attempts, by name.
        committed: Path of the record of each shard that this run has committed, by name.
        inputs_read: Inputs that a worker has read instead of the listed ones, because the file changed in between, by
            shard name.
        broken: The status "truncated" or "damaged" of each shard of which only a part could be read, by name.
        has_relabelled: True if shards that were done had to be labelled again.
        set_aside: Why nodes were set aside, by host and id.
        notes: What this run has noticed about shards, by name; only the first `MAX_NOTES`.
        work: How fast the hosts label, and the slowest shards of this run.
    """

    job: Job
    source: str
    plan: Plan
    listing: Listing
    left_out: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    before: Manifest | None
    progress: ProgressBar
    manifest: Manifest | None = None
    counts: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    committed: dict[str, str] = field(default_factory=dict)
    inputs_read: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    has_relabelled: bool = False
    set_aside: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    work: WorkStatistics = field(default_factory=WorkStatistics)

    def __post_init__(self) -> None:
        self._file = ProgressFile(self.job.out, todo=len(self.plan.todo))
        self.broken = {name.shard: name.broken for name in self.plan.done if name.broken}
        self._hosts_with_other_versions: set[str] = set()

    def __enter__(self) -> RunRecorder:
        if self.before is not None and self.plan.todo:
            self._file.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close("ended" if kind is None else "stopped")

    @property
    def nodes(self) -> Mapping[str, Mapping[str, Any]]:
        """The number of workers that have become ready on each host, and the name of their GPU."""
        return self._file.nodes

    def worker_ready(self, report: WorkerReport) -> None:
        if self.manifest is not None:
            dtype = self.manifest.settings["dtype"]
            if report.dtype and report.dtype != dtype:
                raise RunRefused(
                    f"the GPU of the worker on {report.host} has another best type ({report.dtype}) than that of the "
                    f"first worker of this run ({dtype}), and all labels of a run come from one type. "
                    "Give the type of all workers, such as --dtype float16"
                )
            if report.fingerprint != self.manifest.fingerprint:
                raise RunRefused(f"the checkpoint on {report.host} differs from the one that this run started with")
            self._warn_of_other_versions(report)
            self._file.worker_ready(report)
            return
        manifest = Manifest(
            source=self.source,
            settings=self.job.settings.plain() | ({"dtype": report.dtype} if report.dtype else {}),
            model_sha256=report.model_sha256,
            resolved=report.resolved,
            environment=report.environment,
            fingerprint=report.fingerprint,
            shards=self.plan.shards,
            listing=self.listing.digest(),
            left_out=self.left_out,
        )
        for difference in take_over(self.job.out, before=self.before, now=manifest, listing=self.listing):
            log.warning("resuming in another environment, so a few pixels may differ: %s", difference)
        self.manifest = manifest
        self.plan.delete_outdated(self.job.out)
        self._file.worker_ready(report)
        self._file.start()

    def _warn_of_other_versions(self, report: WorkerReport) -> None:
        """Log, once for each host, that its libraries have other versions than those in run.json."""
        assert self.manifest is not None
        found = differences(versions_in(self.manifest.environment), versions_in(report.environment))
        if found and report.host not in self._hosts_with_other_versions:
            self._hosts_with_other_versions.add(report.host)
            log.warning(
                "%s has other versions of libraries than the host of the first worker, so a few pixels may differ: %s",
                report.host,
                ", ".join(f"{name} {theirs} instead of {ours}" for name, ours, theirs in found),
            )

    def resume_without_worker(self) -> Manifest:
        """Continue the run of OUT when every shard is done, and return its run.json."""
        assert self.before is not None
        self.manifest = dataclasses.replace(
            self.before, shards=self.plan.shards, listing=self.listing.digest(), left_out=self.left_out
        )
        if self.manifest != self.before or read_listing(self.job.out, self.before.listing) != self.listing:
            take_over(self.job.out, before=self.before, now=self.manifest, listing=self.listing)
        return self.manifest

    def forget(self, shards: Collection[str]) -> None:
        """Note that shards which were done are labelled again, so that `counts` holds the rows of some shards twice."""
        self.plan.done = [name for name in self.plan.done if name.shard not in shards]
        for shard in shards:
            self.broken.pop(shard, None)
            self.committed.pop(shard, None)
        self.has_relabelled = True

    def shard_committed(self, commit: Commit) -> None:
        self.counts.update(commit.counts)
        self.seconds.update(commit.seconds)
        self.work.add(commit)
        if commit.notes and len(self.notes) < MAX_NOTES:
            self.notes[commit.shard] = "; ".join(commit.notes)
        self.committed[commit.shard] = commit.path
        self.broken.pop(commit.shard, None)
        if commit.broken:
            self.broken[commit.shard] = commit.broken
        if self.listing.inputs[commit.shard] not in (ANY_INPUTS, commit.inputs):
            self.inputs_read[commit.shard] = commit.inputs
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
        if isinstance(error, RunTakenOver):
            raise error
        if isinstance(error, StorageUnwritable):  # labels are written to OUT alone, so no other shard would do better
            raise RunFailed(redact(str(error))) from error
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
        assert self.manifest is not None
        record = Commit(
            shard=name,
            state="failed",
            fingerprint=self.manifest.fingerprint,
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

    def node_set_aside(self, node: str, reason: str) -> None:
        self.set_aside[node] = reason

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
        of_source = () if shard.kind == "prompts" else (self.job.source.at(folder),)
        for storage in (*of_source, self.job.out):
            probe = dataclasses.replace(storage, retry_timeout=min(PROBE_SECONDS, storage.retry_timeout))
            try:
                probe.exists()
            except StoreUnavailable as error:
                raise RunFailed(f"{error}; run the same command again to resume") from error
            except OSError:
                continue  # the store answers
