"""The driver of a labelling run: plan, guard OUT, run on Ray or in this process, sum up.

Nothing of a run lives outside OUT: running the same command again continues it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
from rich.console import Console

from pipeline.errors import RunFailed, RunRefused
from pipeline.executor.actors import ActorGroup
from pipeline.executor.cluster import cluster_in_words, connected
from pipeline.executor.progress_bar import RunProgress
from pipeline.executor.protocol import InHand, Job, PoolState, Worker, WorkerProgress
from pipeline.executor.recorder import RunObserver
from pipeline.executor.scheduler import ActorPool
from pipeline.executor.shard_queue import ShardQueue
from pipeline.executor.worker import LabelWorker
from pipeline.output.manifest import Manifest, check_same_run, clear_run, read_manifest
from pipeline.output.plan import make_plan
from pipeline.readers.find import find_shards
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import Storage
from pipeline.weights import find_affinity, find_weights
from pipeline.worker_pools import WorkerSpec, parse_worker_specs


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
    reached = Storage(url=".", options=source_options, retry_timeout=run.store_timeout)
    target = Storage(url=out, options=out_options, retry_timeout=run.store_timeout)
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
        _refuse_another_model(before, job)
    started = time.perf_counter()
    with (
        RunProgress(len(plan.todo), console=console or Console(quiet=True), shown=console is not None) as progress,
        RunObserver(job=job, source=shown_source, plan=plan, before=before, progress=progress) as observer,
    ):
        if plan.todo and run.no_ray:
            _run_here(job, ShardQueue(plan.todo), observer, worker_class)
        elif plan.todo:
            _run_on_ray(job, run, ShardQueue(plan.todo), observer, worker_class)
    wall = time.perf_counter() - started
    return RunSummary(
        shards=len(shards),
        done_before=len(plan.done),
        failed={name: failure.error for name, failure in sorted(plan.failures.items())} | observer.failed,
        counts=dict(plan.counts_before() + observer.counts),
        seconds=dict(observer.seconds),
        images=observer.counts.total(),
        wall=wall,
    )


def _refuse_early(before: Manifest, source: str, settings: LabelSettings, out: Storage) -> None:
    """Compare all that is known before a model is loaded: not the model itself, which may lie elsewhere now."""
    same_model = {name: before.settings[name] for name in ("model", "revision")}
    for part in ("vae", "clip", "affinity"):
        if getattr(settings, part) is not None and before.settings.get(part) is not None:
            same_model[part] = before.settings[part]
    plain = settings.plain() | same_model
    check_same_run(before, dataclasses.replace(before, source=source, settings=plain, fingerprint="unknown"), out)


def _refuse_another_model(before: Manifest, job: Job) -> None:
    """Compare the files of the model, and what was learned, where nothing is left to do and so no worker would."""
    learned = job.settings.affinity
    if learned is not None and learned != before.settings.get("affinity"):
        resolved = {**before.resolved, "affinity": find_affinity(learned, job.source).sha256}
        check_same_run(before, dataclasses.replace(before, resolved=resolved, fingerprint="unknown"), job.out)
    if all(getattr(job.settings, name) == before.settings.get(name) for name in ("model", "revision", "vae", "clip")):
        return
    found = find_weights(job.settings, job.source).fingerprint()
    check_same_run(before, dataclasses.replace(before, model_sha256=found, fingerprint="unknown"), job.out)


def _on_device(job: Job, has_cuda: bool) -> Job:
    if job.worker.device != "auto":
        return job
    device: Literal["cuda", "cpu"] = "cuda" if has_cuda else "cpu"
    return dataclasses.replace(job, worker=dataclasses.replace(job.worker, device=device))


def _run_here(job: Job, queue: ShardQueue, observer: RunObserver, worker_class: Callable[[], Worker]) -> None:
    import torch  # only where a model runs: it takes seconds and hundreds of megabytes, and so does diffusers

    worker = worker_class()
    report = worker.load(_on_device(job, torch.cuda.is_available()))
    observer.ready(report)
    while task := queue.take():
        in_hand = InHand(
            shard=task.shard.name,
            attempt=task.attempt,
            since=time.monotonic(),
            worker=f"{report.host}:{report.pid}",
            progress=WorkerProgress(samples=0, waiting=""),
        )
        observer.working(PoolState(ready=1, asked=1, waiting=queue.waiting, in_hand=[in_hand]))
        try:
            commit = worker.label(task.shard, task.attempt)
        except Exception as error:  # law 3: whatever a shard does, the others go on
            observer.attempt_failed(task, error, again=queue.failed(task))
        else:
            queue.succeeded()
            observer.committed(commit)


def _run_on_ray(
    job: Job, run: RunSettings, queue: ShardQueue, observer: RunObserver, worker_class: Callable[[], Worker]
) -> None:
    plain = WorkerSpec(cpus=float(job.worker.threads))
    with connected(run, parse_worker_specs(run.workers, plain)) as local:
        cluster = ray.cluster_resources()
        cuda = _on_device(job, cluster.get("GPU", 0) > 0).worker.device == "cuda"
        plain = dataclasses.replace(plain, gpus=run.gpus_per_worker if cuda else 0.0)
        pools = parse_worker_specs(run.workers, plain)
        for pool in pools:
            if local and (pool.gpus > cluster.get("GPU", 0) or pool.cpus > cluster.get("CPU", 0)):
                raise RunFailed(f"no worker can start on this machine: each asks for {pool}. {cluster_in_words()}")
        groups = [ActorGroup(pool, _for_pool(job, pool), worker_class) for pool in pools]
        timeouts = {"shard_timeout": run.shard_timeout, "start_timeout": run.start_timeout}
        ActorPool(groups, queue, observer, **timeouts).run()


def _for_pool(job: Job, pool: WorkerSpec) -> Job:
    worker = dataclasses.replace(job.worker, batch_size=pool.batch_size or job.worker.batch_size)
    return _on_device(dataclasses.replace(job, worker=worker), pool.gpus > 0)
