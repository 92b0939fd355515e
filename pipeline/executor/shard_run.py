"""Runs the shards of a source in workers and commits them to OUT, whatever a worker makes of a shard.

All state of a run is in OUT, so running the same command again resumes it.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console

from pipeline.errors import RunFailed, RunRefused
from pipeline.executor import metrics
from pipeline.executor.actors import ActorGroup
from pipeline.executor.auto_settings import with_common_dtype
from pipeline.executor.connection import connected
from pipeline.executor.faults import error_text, every_worker_fails, is_environmental
from pipeline.executor.finish import Finish
from pipeline.executor.health import STUCK_SHARDS
from pipeline.executor.live_run import refuse_live_run
from pipeline.executor.progress_bar import ProgressBar
from pipeline.executor.protocol import Job, RunState, ShardInFlight, Worker, WorkerProgress
from pipeline.executor.readiness import ReadinessCheck
from pipeline.executor.recorder import RunRecorder
from pipeline.executor.scheduler import Scheduler
from pipeline.executor.shard_queue import Place, ShardQueue
from pipeline.executor.summary import RunSummary
from pipeline.output.letter_case import refuse_names_that_collide
from pipeline.output.listing import Listing, read_listing
from pipeline.output.manifest import PATH as MANIFEST_PATH
from pipeline.output.manifest import Manifest, require_manifest
from pipeline.output.overview import count_rows
from pipeline.output.ownership import clear_run, refuse_foreign_folder
from pipeline.output.plan import Plan, make_plan
from pipeline.output.reconcile import GoneShards
from pipeline.output.records import list_records
from pipeline.readers.samples import Shard, ShardKind
from pipeline.settings import RunSettings
from pipeline.storage import Storage, redact
from pipeline.worker_pools import WorkerSpec, parse_worker_specs


def guard_out(out: Storage, before: Manifest | None, run: RunSettings) -> None:
    """Refuse an OUT that the run must not write to, and clear it if it is to be overwritten.

    Args:
        out: OUT.
        before: The manifest of the run in OUT, unless there is none or it is to be overwritten.
        run: How this run is carried out.

    Raises:
        RunRefused: OUT holds foreign files or a live run, or holds no run to retry.
    """
    if run.overwrite:
        refuse_live_run(out)
        clear_run(out)
    elif before is None:
        refuse_foreign_folder(out, MANIFEST_PATH)
    if before is None and run.retry_failed:
        raise RunRefused(f"{out.redacted}: holds no run; drop --retry-failed")


def run_shards(
    job: Job,
    shards: Sequence[Shard],
    *,
    run: RunSettings,
    source: str,
    before: Manifest | None,
    skipped: Collection[str] = (),
    left_out: Mapping[str, Mapping[str, Any]] | None = None,
    check_model: Callable[[Manifest, Job], None] = lambda before, job: None,
    console: Console | None = None,
    worker_class: Callable[[], Worker],
) -> RunSummary:
    """Run the shards that are not done yet. Shards and samples that fail are recorded, not raised.

    Args:
        job: What the workers get, without the listing.
        shards: The shards of SRC.
        run: How the run is carried out.
        source: SRC without credentials, for run.json.
        before: run.json of the run in OUT, as `guard_out` got it.
        skipped: Folders of SRC that could not be listed.
        left_out: What SRC holds besides the shards, by kind.
        check_model: Refuses a run with another model if nothing is left to do, since no worker compares them then.
        console: Where to show the progress; None shows nothing.
        worker_class: Class of the workers.

    Returns:
        What OUT holds after the run.

    Raises:
        RunRefused: OUT belongs to a run with other settings.
        RunFailed: No worker starts, a store is unreachable, or another run has taken over OUT.
        OSError: A request of the driver to a store failed.
    """
    out = job.out
    listing = Listing.of(shards, ignore_changes=run.ignore_source_changes)
    plan = make_plan(out, shards, listing, before.fingerprint if before else None, retry_failed=run.retry_failed)
    if before is not None and (run.keep_removed or skipped):
        listing = _with_kept(listing, plan, read_listing(out, before.listing), kind=shards[0].kind)
    if plan.todo:
        out.check_writable()  # before a model is loaded
        refuse_names_that_collide(out, (shard.name for shard in shards))
    job = dataclasses.replace(job, listing=listing.digest())
    if before is not None and not plan.todo:
        check_model(before, job)
    started = time.perf_counter()
    with (
        ProgressBar(len(plan.todo), console=console or Console(quiet=True), shown=console is not None) as progress,
        RunRecorder(
            job=job,
            source=source,
            plan=plan,
            listing=listing,
            left_out=left_out or {},
            before=before,
            progress=progress,
        ) as recorder,
    ):

        def label(todo: list[Shard]) -> None:
            if run.no_ray:
                _run_in_process(job, ShardQueue(todo), recorder, worker_class)
            else:
                _run_on_ray(job, run, ShardQueue(todo), recorder, worker_class)

        if plan.todo:
            label(plan.todo)
        finish = Finish(recorder=recorder, shards=shards, skipped=skipped, keep_removed=run.keep_removed, label=label)
        gone = finish.run()
    return _summarise(recorder, shards=len(shards), gone=gone, wall=time.perf_counter() - started)


def _summarise(recorder: RunRecorder, *, shards: int, gone: GoneShards | None, wall: float) -> RunSummary:
    """Return what OUT holds after a run over `shards` shards that took `wall` seconds."""
    plan = recorder.plan
    counts = _recount(recorder.job.out, recorder) if recorder.has_relabelled else plan.counts_before() + recorder.counts
    return RunSummary(
        shards=shards,
        done_before=len(plan.done),
        failed={name: failure.error for name, failure in sorted(plan.failures.items())} | recorder.failed,
        counts=dict(counts),
        seconds=dict(recorder.seconds),
        images=recorder.counts.total(),
        wall=wall,
        broken=dict(sorted(recorder.broken.items())),
        gone=gone,
        left_out=recorder.left_out,
        set_aside=dict(recorder.set_aside),
        nodes=recorder.nodes,
        work=recorder.work.plain(),
        notes=recorder.notes,
    )


def _recount(out: Storage, recorder: RunRecorder) -> Counter[str]:
    """Count the rows of all shards of SRC, by the names of their records."""
    manifest = require_manifest(out)
    records = list_records(out, manifest.fingerprint, read_listing(out, manifest.listing))
    return count_rows(out, (name for shard, name in records.done.items() if shard in recorder.listing.inputs))


def _with_kept(listing: Listing, plan: Plan, previous: Listing | None, *, kind: ShardKind) -> Listing:
    """Return the listing with the label shards that count although their source is gone.

    The groups of image files are kept later, when the rows of the files that are left have been labelled in new groups.
    """
    kept = previous.kept if previous else ()
    return listing.with_kept(kept if kind == "images" else {*kept, *plan.gone})


def _resolve_device(job: Job, has_cuda: bool) -> Job:
    """Replace the device "auto"."""
    if job.worker.device != "auto":
        return job
    device: Literal["cuda", "cpu"] = "cuda" if has_cuda else "cpu"
    return dataclasses.replace(job, worker=dataclasses.replace(job.worker, device=device))


def _has_cuda() -> bool:
    import torch  # takes seconds and hundreds of megabytes, which a driver of Ray actors does not need

    return torch.cuda.is_available()


def _run_in_process(job: Job, queue: ShardQueue, recorder: RunRecorder, worker_class: Callable[[], Worker]) -> None:
    worker = worker_class()
    report = worker.load(_resolve_device(job, job.worker.device == "auto" and _has_cuda()))
    recorder.worker_ready(report)
    place = Place(node=report.host, worker=str(report.pid))
    stuck_at: set[str] = set()
    while task := queue.take(place):
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
            is_free = is_environmental(error, task.shard)
            recorder.attempt_failed(task, error, will_retry=queue.failed(task, place, is_free=is_free))
            stuck_at |= {task.shard.name} if is_free else set()
            if len(stuck_at) >= STUCK_SHARDS:
                raise RunFailed(every_worker_fails(redact(error_text(error)))) from error
        else:
            stuck_at.clear()
            queue.succeeded()
            recorder.shard_committed(commit)


def _run_on_ray(
    job: Job, run: RunSettings, queue: ShardQueue, recorder: RunRecorder, worker_class: Callable[[], Worker]
) -> None:
    default = WorkerSpec(cpus=float(job.worker.threads))
    with connected(run, parse_worker_specs(run.workers, default)) as connection:
        watch = connection.watch
        watch.refresh()
        cluster = watch.resources
        uses_cuda = _resolve_device(job, cluster.get("GPU", 0) > 0).worker.device == "cuda"
        default = dataclasses.replace(default, gpus=run.gpus_per_worker if uses_cuda else 0.0)
        specs = parse_worker_specs(run.workers, default)
        for spec in specs:
            if connection.is_private and (spec.gpus > cluster.get("GPU", 0) or spec.cpus > cluster.get("CPU", 0)):
                raise RunFailed(f"no worker can start on this machine: each requests {spec}. {watch.describe()}")
        jobs = with_common_dtype([_job_of_pool(job, spec) for spec in specs])
        groups = [ActorGroup(*pool, worker_class) for pool in zip(specs, jobs, strict=True)]
        readiness = ReadinessCheck(groups, watch, start_timeout=run.start_timeout, place_timeout=run.place_timeout)
        timeouts = {"shard_timeout": run.shard_timeout, "start_timeout": run.start_timeout}
        try:
            Scheduler(groups, queue, recorder, watch=watch, readiness=readiness, **timeouts).run()
        finally:  # while Ray is connected: without these values the driver would seem to have died
            metrics.measure_run(RunState(ready=0, requested=0, waiting=0, in_flight=()))


def _job_of_pool(job: Job, spec: WorkerSpec) -> Job:
    """Return the job with the batch size and the device of a worker pool."""
    worker = dataclasses.replace(job.worker, batch_size=spec.batch_size or job.worker.batch_size)
    return _resolve_device(dataclasses.replace(job, worker=worker), spec.gpus > 0)
