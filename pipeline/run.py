"""The driver of a labelling run: plan, guard OUT, run on Ray or in this process, sum up.

Nothing of a run lives outside OUT: running the same command again continues it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from rich.console import Console

from pipeline.commit import Commit, read_commits, totals, write_commit
from pipeline.manifest import Manifest, check_same_run, clear_run, read_manifest, write_manifest
from pipeline.pool import ActorPool, PoolSettings, resources_message
from pipeline.progress import RunProgress
from pipeline.queue import ShardQueue, Task
from pipeline.settings import LabelSettings, RunFailed, RunRefused, RunSettings, WorkerSettings
from pipeline.shards import Shard, find_shards
from pipeline.storage import Storage, redact
from pipeline.worker import Job, LabelWorker, WorkerReport

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What OUT holds after a run.

    shards: of SRC. done_before: shards that an earlier run had done. failed: {shard: error} of those that failed.
    counts: rows by status. seconds: by step, of the shards labelled now. images, wall: rows labelled now, and seconds.
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

    out: Storage
    source: str
    settings: LabelSettings
    shards: list[Shard]
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
        now = Manifest(
            source=self.source,
            settings=dataclasses.asdict(self.settings),
            model_sha256=report.model_sha256,
            resolved=report.resolved,
            environment=report.environment,
            fingerprint=report.fingerprint,
            shards=len(self.shards),
        )
        if self.before is not None:
            for difference in check_same_run(self.before, now, self.out):
                log.warning("resuming with another environment, so single pixels may differ: %s", difference)
        write_manifest(self.out, now)
        self.fingerprint = report.fingerprint

    def committed(self, commit: Commit) -> None:
        self.labelled[commit.shard] = commit
        self.progress.shard_finished(commit.rows)

    def attempt_failed(self, task: Task, error: str, *, again: bool) -> None:
        error = redact(error)
        name = task.shard.name
        then = ", it will be tried again" if again else ""
        log.warning("attempt %d at shard %s failed%s: %s", task.attempt, name, then, error)
        if again:
            return
        now = time.time()
        assert self.fingerprint is not None
        record = Commit(
            shard=name,
            state="failed",
            fingerprint=self.fingerprint,
            attempt=task.attempt,
            inputs=task.shard.digest(),
            error=error,
            finished=now,
        )
        write_commit(self.out, record)
        self.failed[name] = error
        self.progress.shard_finished(0)

    def working(self, workers: int, samples_in_hand: int) -> None:
        self.progress.working(workers, samples_in_hand)


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
) -> RunSummary:
    """Label all shards of SRC into OUT and return what OUT holds then.

    Raises SourceError (nothing to label), RunRefused (OUT belongs to other settings), RunFailed (no worker starts);
    shards and samples that fail are recorded, not raised. console: where progress is shown; None shows nothing.
    """
    target = Storage(url=out, options=out_options)
    shards = find_shards(source, options=source_options, samples_per_shard=settings.samples_per_shard)
    if run.overwrite:
        clear_run(target)
    before = read_manifest(target)
    shown_source = Storage(url=source).redacted
    if before is not None:
        _refuse_early(before, shown_source, settings, target)
    commits = read_commits(target) if before is not None else {}
    fingerprint = before.fingerprint if before else ""
    todo = [s for s in shards if not (s.name in commits and _is_done(commits[s.name], s, fingerprint))]
    if before is not None and not todo:
        _refuse_another_model(before, settings, target)
    started = time.perf_counter()
    with RunProgress(len(todo), console=console or Console(quiet=True), shown=console is not None) as progress:
        observer = _Run(
            out=target, source=shown_source, settings=settings, shards=shards, before=before, progress=progress
        )
        job = Job(settings=settings, worker=worker, out=target, source_options=source_options)
        if todo and run.no_ray:
            _run_here(job, ShardQueue(todo), observer)
        elif todo:
            _run_on_ray(job, run, ShardQueue(todo), observer)
    done = {name: commit for name, commit in commits.items() if commit.state == "done"} | observer.labelled
    wanted = {shard.name for shard in shards}
    counts, _ = totals(commit for name, commit in done.items() if name in wanted)
    _, seconds = totals(observer.labelled.values())
    return RunSummary(
        shards=len(shards),
        done_before=len(shards) - len(todo),
        failed=observer.failed,
        counts=dict(counts),
        seconds=dict(seconds),
        images=sum(commit.rows for commit in observer.labelled.values()),
        wall=time.perf_counter() - started,
    )


def _is_done(commit: Commit, shard: Shard, fingerprint: str) -> bool:
    return commit.is_done(fingerprint) and commit.inputs == shard.digest()


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


def _run_here(job: Job, queue: ShardQueue, observer: _Run) -> None:
    import torch  # only where a model runs: it takes seconds and hundreds of megabytes, and so does diffusers

    worker = LabelWorker(_on_device(job, torch.cuda.is_available()))
    observer.ready(worker.load())
    observer.working(1, 0)
    while task := queue.take():
        try:
            commit = worker.label(task.shard, task.attempt)
        except Exception as error:  # law 3: whatever a shard does, the others go on
            observer.attempt_failed(task, f"{type(error).__name__}: {error}", again=queue.failed(task))
        else:
            queue.succeeded()
            observer.committed(commit)


def _run_on_ray(job: Job, run: RunSettings, queue: ShardQueue, observer: _Run) -> None:
    started_here = not ray.is_initialized()
    local = started_here and _start_ray(run, job.worker)
    try:
        cluster = ray.cluster_resources()
        job = _on_device(job, cluster.get("GPU", 0) > 0)
        pool = _pool_settings(run, job.worker)
        if local and (pool.gpus > cluster.get("GPU", 0) or pool.cpus > cluster.get("CPU", 0)):
            raise RunFailed(f"no worker can start on this machine. {resources_message(pool)}")
        ActorPool(job, pool, queue, observer).run()
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
