"""The driver of a labelling run: it plans the run, guards OUT, labels on Ray or in this process, and sums up.

All state of a run is in OUT, so running the same command again resumes it.
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
from pipeline.executor.cluster import connected, describe_cluster
from pipeline.executor.progress_bar import ProgressBar
from pipeline.executor.protocol import Job, RunState, ShardInFlight, Worker, WorkerProgress
from pipeline.executor.recorder import RunRecorder
from pipeline.executor.scheduler import Scheduler
from pipeline.executor.shard_queue import ShardQueue
from pipeline.executor.worker import LabelWorker
from pipeline.output.manifest import PATH as MANIFEST_PATH
from pipeline.output.manifest import Manifest, check_same_run, read_manifest
from pipeline.output.ownership import clear_run, refuse_foreign_folder
from pipeline.output.plan import make_plan
from pipeline.readers.find import find_shards
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import Storage
from pipeline.weights import find_affinity, find_weights
from pipeline.worker_pools import WorkerSpec, parse_worker_specs


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What OUT holds after a run.

    Attributes:
        shards: Number of shards of SRC.
        done_before: Number of shards that earlier runs had labelled.
        failed: Errors of the failed shards by name.
        counts: Rows by status. Rows that failed in earlier runs are counted together, as "failed before".
        seconds: Seconds by step of the shards labelled in this run.
        images: Number of rows labelled in this run.
        wall: Wall time of this run in seconds.
    """

    shards: int
    done_before: int
    failed: Mapping[str, str]
    counts: Mapping[str, int]
    seconds: Mapping[str, float]
    images: int
    wall: float

    def failed_share(self) -> float:
        """Return the share of rows whose status is not ok, 0 to 1."""
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
    """Label all shards of SRC into OUT. Shards and samples that fail are recorded, not raised.

    Args:
        source: SRC, a folder, glob or URL.
        out: OUT, a folder or URL.
        settings: What determines the labels.
        worker: How a worker runs.
        run: How the run is carried out.
        source_options: Options for the stores of SRC and of the model.
        out_options: Options for the store of OUT.
        console: Where to show the progress; None shows nothing.
        worker_class: Class of the workers.

    Returns:
        What OUT holds after the run.

    Raises:
        SourceError: There is nothing to label.
        RunRefused: OUT belongs to a run with other settings.
        RunFailed: No worker starts, or a store is unreachable.
        OSError: A request of the driver to a store failed.
    """
    source_storage = Storage(url=".", options=source_options, retry_timeout=run.store_timeout)
    target = Storage(url=out, options=out_options, retry_timeout=run.store_timeout)
    job = Job(settings=settings, worker=worker, source=source_storage, out=target)
    shards = find_shards(source, source_storage, samples_per_shard=settings.samples_per_shard)
    if run.overwrite:
        clear_run(target)
    before = read_manifest(target)
    if before is None:
        refuse_foreign_folder(target, MANIFEST_PATH)
    redacted_source = Storage(url=source).redacted
    if before is not None:
        _check_settings(before, redacted_source, settings, target)
    elif run.retry_failed:
        raise RunRefused(f"{target.redacted}: holds no run; drop --retry-failed")
    plan = make_plan(target, shards, before.fingerprint if before else None, retry_failed=run.retry_failed)
    if before is not None and not plan.todo:
        _check_model(before, job)
    started = time.perf_counter()
    with (
        ProgressBar(len(plan.todo), console=console or Console(quiet=True), shown=console is not None) as progress,
        RunRecorder(job=job, source=redacted_source, plan=plan, before=before, progress=progress) as recorder,
    ):
        if plan.todo and run.no_ray:
            _run_in_process(job, ShardQueue(plan.todo), recorder, worker_class)
        elif plan.todo:
            _run_on_ray(job, run, ShardQueue(plan.todo), recorder, worker_class)
    wall = time.perf_counter() - started
    return RunSummary(
        shards=len(shards),
        done_before=len(plan.done),
        failed={name: failure.error for name, failure in sorted(plan.failures.items())} | recorder.failed,
        counts=dict(plan.counts_before() + recorder.counts),
        seconds=dict(recorder.seconds),
        images=recorder.counts.total(),
        wall=wall,
    )


def _check_settings(before: Manifest, source: str, settings: LabelSettings, out: Storage) -> None:
    """Refuse a run with other settings before a model is loaded. The model's files are compared later."""
    same_model = {name: before.settings[name] for name in ("model", "revision")}
    for part in ("vae", "clip", "affinity"):
        if getattr(settings, part) is not None and before.settings.get(part) is not None:
            same_model[part] = before.settings[part]
    plain = settings.plain() | same_model
    check_same_run(before, dataclasses.replace(before, source=source, settings=plain, fingerprint="unknown"), out)


def _check_model(before: Manifest, job: Job) -> None:
    """Refuse a run with another model or affinity if nothing is left to label, since no worker compares them then."""
    affinity = job.settings.affinity
    if affinity is not None and affinity != before.settings.get("affinity"):
        resolved = {**before.resolved, "affinity": find_affinity(affinity, job.source).sha256}
        check_same_run(before, dataclasses.replace(before, resolved=resolved, fingerprint="unknown"), job.out)
    if all(getattr(job.settings, name) == before.settings.get(name) for name in ("model", "revision", "vae", "clip")):
        return
    model_sha256 = find_weights(job.settings, job.source).fingerprint()
    check_same_run(before, dataclasses.replace(before, model_sha256=model_sha256, fingerprint="unknown"), job.out)


def _resolve_device(job: Job, has_cuda: bool) -> Job:
    """Replace the device "auto"."""
    if job.worker.device != "auto":
        return job
    device: Literal["cuda", "cpu"] = "cuda" if has_cuda else "cpu"
    return dataclasses.replace(job, worker=dataclasses.replace(job.worker, device=device))


def _run_in_process(job: Job, queue: ShardQueue, recorder: RunRecorder, worker_class: Callable[[], Worker]) -> None:
    import torch  # takes seconds and hundreds of megabytes, which a driver of Ray actors does not need

    worker = worker_class()
    report = worker.load(_resolve_device(job, torch.cuda.is_available()))
    recorder.worker_ready(report)
    while task := queue.take():
        in_flight = ShardInFlight(
            shard=task.shard.name,
            attempt=task.attempt,
            since=time.monotonic(),
            worker=f"{report.host}:{report.pid}",
            progress=WorkerProgress(samples=0, waiting=""),
        )
        recorder.update(RunState(ready=1, requested=1, waiting=queue.waiting, in_flight=[in_flight]))
        try:
            commit = worker.label(task.shard, task.attempt)
        except Exception as error:  # a shard that fails never costs another shard
            recorder.attempt_failed(task, error, will_retry=queue.failed(task))
        else:
            queue.succeeded()
            recorder.shard_committed(commit)


def _run_on_ray(
    job: Job, run: RunSettings, queue: ShardQueue, recorder: RunRecorder, worker_class: Callable[[], Worker]
) -> None:
    default = WorkerSpec(cpus=float(job.worker.threads))
    with connected(run, parse_worker_specs(run.workers, default)) as is_local:
        cluster = ray.cluster_resources()
        uses_cuda = _resolve_device(job, cluster.get("GPU", 0) > 0).worker.device == "cuda"
        default = dataclasses.replace(default, gpus=run.gpus_per_worker if uses_cuda else 0.0)
        specs = parse_worker_specs(run.workers, default)
        for spec in specs:
            if is_local and (spec.gpus > cluster.get("GPU", 0) or spec.cpus > cluster.get("CPU", 0)):
                raise RunFailed(f"no worker can start on this machine: each requests {spec}. {describe_cluster()}")
        groups = [ActorGroup(spec, _job_of_pool(job, spec), worker_class) for spec in specs]
        timeouts = {"shard_timeout": run.shard_timeout, "start_timeout": run.start_timeout}
        Scheduler(groups, queue, recorder, **timeouts).run()


def _job_of_pool(job: Job, spec: WorkerSpec) -> Job:
    """Return the job with the batch size and the device of a worker pool."""
    worker = dataclasses.replace(job.worker, batch_size=spec.batch_size or job.worker.batch_size)
    return _resolve_device(dataclasses.replace(job, worker=worker), spec.gpus > 0)
