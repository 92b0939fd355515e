"""The driver of a labelling run: plan, guard OUT, run on Ray or in this process, sum up.

Nothing of a run lives outside OUT: running the same command again continues it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from rich.console import Console

from pipeline.commit import Commit, totals, write_commit
from pipeline.manifest import Manifest, check_same_run, clear_run, create_manifest, read_manifest, write_manifest
from pipeline.plan import Plan, make_plan
from pipeline.pool import ActorPool, PoolSettings, resources_message
from pipeline.progress import RunProgress
from pipeline.queue import ShardQueue, Task
from pipeline.settings import LabelSettings, RunFailed, RunRefused, RunSettings, WorkerLost, WorkerSettings
from pipeline.shards import Shard, find_shards, split_url
from pipeline.storage import Storage, StoreUnavailable, redact
from pipeline.worker import Job, LabelWorker, Worker, WorkerReport

log = logging.getLogger(__name__)

PROBE_SECONDS = 30.0
"""How long the driver itself tries to reach a store that a worker could not."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What OUT holds after a run.

    shards: of SRC. done_before: shards that an earlier run had done. failed: {shard: error} of those that have failed.
    counts: rows by status; those that failed in earlier runs together, as `failed before`. seconds: by step, of the
    shards labelled now. images, wall: rows labelled now, and seconds.
    """

    shards: int
    done_before: int
    failed: Mapping[str, str]
    counts: Mapping[str, int]
    seconds: Mapping[str, float]
    images: int
    wall: float

    def failed_share(self) -> float:
        """Share of the rows that are not ok."""
        total = sum(self.counts.values())
        return 1 - self.counts.get("ok", 0) / total if total else 0.0


@dataclass(kw_only=True)
class _Run:
    """The observer of a run: guards the manifest, keeps the commits, moves the bar."""

    job: Job
    source: str
    plan: Plan
    before: Manifest | None
    progress: RunProgress
    fingerprint: str | None = None
    labelled: dict[str, Commit] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def ready(self, report: WorkerReport) -> None:
        if self.fingerprint is not None:
            if report.fingerprint != self.fingerprint:
                raise RunRefused(f"the checkpoint on {report.host} differs from the one that this run began with")
            return
        out = self.job.out
        now = Manifest(
            source=self.source,
            settings=dataclasses.asdict(self.job.settings),
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

    def committed(self, commit: Commit) -> None:
        self.labelled[commit.shard] = commit
        if failure := self.plan.failures.pop(commit.shard, None):
            self.job.out.delete(failure.path)
        self.progress.shard_finished(commit.rows)

    def attempt_failed(self, task: Task, error: BaseException, *, again: bool) -> None:
        text = redact(str(error) if isinstance(error, WorkerLost) else f"{type(error).__name__}: {error}")
        name = task.shard.name
        then = ", it will be tried again" if again else ""
        log.warning("attempt %d at shard %s failed%s: %s", task.attempt, name, then, text)
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
            passing=isinstance(error, (OSError, WorkerLost, MemoryError)),
            finished=time.time(),
        )
        write_commit(self.job.out, record)
        self.failed[name] = text
        self.progress.shard_finished(0)

    def working(self, workers: int, samples_in_hand: int, waiting: Sequence[str]) -> None:
        self.progress.working(workers, samples_in_hand, waiting)

    def _fail_if_stores_are_gone(self, shard: Shard) -> None:
        """One worker's store trouble is its shard's; a store that the driver cannot reach either ends the run."""
        folder = shard.url if shard.kind == "images" else split_url(shard.url)[0]
        for storage in (self.job.source.at(folder), self.job.out):
            probe = dataclasses.replace(storage, patience=min(PROBE_SECONDS, storage.patience))
            try:
                probe.exists()
            except StoreUnavailable as error:
                raise RunFailed(f"{error}; the same command goes on where this run stopped") from error
            except OSError:
                continue  # it answers


def label_run(
    source: str,
    out: str,
    *,
    settings: LabelSettings,
    worker: WorkerSettings,
    run: RunSettings,
    source_options: Mapping[str, Any] | None = None,
    out_options: Mapping[str, Any] | None = None,
    console: Console | None = None,
    worker_class: Callable[[], Worker] = LabelWorker,
) -> RunSummary:
    """Label all shards of SRC into OUT and return what OUT holds then.

    Raises SourceError (nothing to label), RunRefused (OUT belongs to other settings), RunFailed (no worker starts, a
    store is gone), OSError (a store fails the driver); shards and samples that fail are recorded, not raised. console:
    where progress is shown; None shows nothing. worker_class: what labels.
    """
    reached = Storage(url=".", options=source_options, patience=run.store_timeout)
    target = Storage(url=out, options=out_options, patience=run.store_timeout)
    job = Job(settings=settings, worker=worker, source=reached, out=target)
    shards = find_shards(source, reached, samples_per_shard=settings.samples_per_shard)
    if run.overwrite:
        clear_run(target)
    before = read_manifest(target)
    shown_source = Storage(url=source).redacted
    if before is not None:
        _refuse_early(before, shown_source, settings, target)
    elif run.retry_failed:
        raise RunRefused(f"{target.redacted}: holds no run, so nothing failed there; leave --retry-failed away")
    plan = make_plan(target, shards, before.fingerprint if before else None, retry_failed=run.retry_failed)
    if before is not None and not plan.todo:
        _refuse_another_model(before, settings, target)
    started = time.perf_counter()
    with RunProgress(len(plan.todo), console=console or Console(quiet=True), shown=console is not None) as progress:
        observer = _Run(job=job, source=shown_source, plan=plan, before=before, progress=progress)
        if plan.todo and run.no_ray:
            _run_here(job, ShardQueue(plan.todo), observer, worker_class)
        elif plan.todo:
            _run_on_ray(job, run, ShardQueue(plan.todo), observer, worker_class)
    wall = time.perf_counter() - started
    counts, seconds = totals(observer.labelled.values())
    return RunSummary(
        shards=len(shards),
        done_before=len(plan.done),
        failed={name: failure.error for name, failure in sorted(plan.failures.items())} | observer.failed,
        counts=dict(plan.counts_before() + counts),
        seconds=dict(seconds),
        images=sum(commit.rows for commit in observer.labelled.values()),
        wall=wall,
    )


def _refuse_early(before: Manifest, source: str, settings: LabelSettings, out: Storage) -> None:
    """Compare all that is known before a model is loaded: not the model itself, which may lie elsewhere now."""
    same_model = {name: before.settings[name] for name in ("model", "revision")}
    plain = dataclasses.asdict(settings) | same_model
    check_same_run(before, dataclasses.replace(before, source=source, settings=plain, fingerprint="unknown"), out)


def _refuse_another_model(before: Manifest, settings: LabelSettings, out: Storage) -> None:
    """Compare the files of the model, where nothing is left to do and so no worker would."""
    if (settings.model, settings.revision) == (before.settings["model"], before.settings["revision"]):
        return
    from diffseg.layout import fingerprint, resolve

    found = fingerprint(resolve(settings.model, settings.revision))
    check_same_run(before, dataclasses.replace(before, model_sha256=found, fingerprint="unknown"), out)


def _on_device(job: Job, has_cuda: bool) -> Job:
    if job.worker.device != "auto":
        return job
    device: Literal["cuda", "cpu"] = "cuda" if has_cuda else "cpu"
    return dataclasses.replace(job, worker=dataclasses.replace(job.worker, device=device))


def _run_here(job: Job, queue: ShardQueue, observer: _Run, worker_class: Callable[[], Worker]) -> None:
    import torch  # only where a model runs: it takes seconds and hundreds of megabytes, and so does diffusers

    worker = worker_class()
    observer.ready(worker.load(_on_device(job, torch.cuda.is_available())))
    observer.working(1, 0, ())
    while task := queue.take():
        try:
            commit = worker.label(task.shard, task.attempt)
        except Exception as error:  # law 3: whatever a shard does, the others go on
            observer.attempt_failed(task, error, again=queue.failed(task))
        else:
            queue.succeeded()
            observer.committed(commit)


def _run_on_ray(
    job: Job, run: RunSettings, queue: ShardQueue, observer: _Run, worker_class: Callable[[], Worker]
) -> None:
    started_here = not ray.is_initialized()
    local = started_here and _start_ray(run, job.worker)
    try:
        cluster = ray.cluster_resources()
        job = _on_device(job, cluster.get("GPU", 0) > 0)
        pool = _pool_settings(run, job.worker)
        if local and (pool.gpus > cluster.get("GPU", 0) or pool.cpus > cluster.get("CPU", 0)):
            raise RunFailed(f"no worker can start on this machine. {resources_message(pool)}")
        ActorPool(job, pool, queue, observer, worker_class).run()
    finally:
        if started_here:
            ray.shutdown()


def _start_ray(run: RunSettings, worker: WorkerSettings) -> bool:
    """Connect to the cluster that is named or found, else start a Ray on this machine; whether it was started."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    named = run.address or os.environ.get("RAY_ADDRESS")
    if named != "local":
        try:
            ray.init(address=named or "auto", **options)
            return False
        except ConnectionError:
            if named:
                raise
    cores = max(os.cpu_count() or 1, (run.workers or 1) * worker.threads)
    ray.init(address="local", num_cpus=cores, include_dashboard=False, **options)
    return True


def _pool_settings(run: RunSettings, worker: WorkerSettings) -> PoolSettings:
    cluster = ray.cluster_resources()
    gpus = run.gpus_per_worker if worker.device.startswith("cuda") else 0.0
    workers = run.workers
    if workers is None:
        workers = int(cluster.get("GPU", 0) / gpus) if gpus else int(cluster.get("CPU", 1) // worker.threads)
    return PoolSettings(
        workers=max(1, workers),
        cpus=float(worker.threads),
        gpus=gpus,
        shard_timeout=run.shard_timeout,
        start_timeout=run.start_timeout,
    )
