"""The driver of a labelling run: it plans the run, guards OUT, labels on Ray or in this process, and sums up.

All state of a run is in OUT, so running the same command again resumes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rich.console import Console

from pipeline.executor.auto_settings import with_dtype_of_run
from pipeline.executor.protocol import Job, Worker
from pipeline.executor.shard_run import guard_out, run_shards
from pipeline.executor.summary import RunSummary
from pipeline.executor.worker import LabelWorker
from pipeline.networks.files import network_sha256, with_network
from pipeline.output.manifest import Manifest, check_same_run, read_manifest
from pipeline.readers.find import SourceFiles, find_files, shards_of
from pipeline.readers.samples import Shard
from pipeline.readers.sources import redacted_source
from pipeline.references.state import load_references, with_references
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import SourceError, Storage
from pipeline.weights import find_affinity, find_weights


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
        RunRefused: OUT belongs to a run with other settings, or is to be overwritten while a run is at work in it.
        RunFailed: No worker starts, a store is unreachable, or another run has taken over OUT.
        OSError: A request of the driver to a store failed.
    """
    source_storage = Storage(url=".", options=source_options, retry_timeout=run.store_timeout)
    target = Storage(url=out, options=out_options, retry_timeout=run.store_timeout)
    settings = with_references(with_network(settings, source_storage), source_storage)
    before = None if run.overwrite else read_manifest(target)  # before SRC is listed, as `take_over` requires
    settings = with_dtype_of_run(settings, before)
    files, shards = _find_shards(source, source_storage, target, settings, strict=run.strict)
    shown_source = redacted_source(source, source_storage)
    return run_job(
        Job(settings=settings, worker=worker, source=source_storage, out=target),
        shards,
        run=run,
        source=shown_source,
        before=before,
        skipped=files.skipped,
        left_out=files.left_out.plain(),
        console=console,
        worker_class=worker_class,
    )


def run_job(
    job: Job,
    shards: Sequence[Shard],
    *,
    run: RunSettings,
    source: str,
    before: Manifest | None,
    skipped: Collection[str] = (),
    left_out: Mapping[str, Mapping[str, Any]] | None = None,
    console: Console | None,
    worker_class: Callable[[], Worker],
) -> RunSummary:
    """Guard OUT, refuse other settings than those of the run in it, and run the shards.

    Arguments and errors are those of `run_shards`.
    """
    guard_out(job.out, before, run)
    if before is not None:
        _check_settings(before, source, job.settings, job.out)
    return run_shards(
        job,
        shards,
        run=run,
        source=source,
        before=before,
        skipped=skipped,
        left_out=left_out,
        check_model=_check_model,
        console=console,
        worker_class=worker_class,
    )


def _find_shards(
    source: str, storage: Storage, out: Storage, settings: LabelSettings, *, strict: bool
) -> tuple[SourceFiles, list[Shard]]:
    """List the files of SRC, and group them into shards."""
    not_read = (out,) if settings.network is None else (out, storage.at(settings.network))
    files = find_files(source, storage, out=not_read, image_field=settings.image_field)
    if strict and files.left_out:
        raise SourceError(
            f"{redacted_source(source, storage)}: --strict refuses what would be left out. "
            f"{files.left_out.text()}. Name the images by a glob, or drop --strict"
        )
    shards = shards_of(
        files, storage, source, samples_per_shard=settings.samples_per_shard, key_field=settings.key_field
    )
    return files, shards


def _check_settings(before: Manifest, source: str, settings: LabelSettings, out: Storage) -> None:
    """Refuse a run with other settings before a model is loaded. The model's files are compared later."""
    same_model = {name: before.settings[name] for name in ("model", "revision")}
    for part in ("vae", "clip", "affinity", "references", "network"):
        if getattr(settings, part) is not None and before.settings.get(part) is not None:
            same_model[part] = before.settings[part]
    plain = settings.plain() | same_model
    check_same_run(before, dataclasses.replace(before, source=source, settings=plain, fingerprint="unknown"), out)


def _check_model(before: Manifest, job: Job) -> None:
    """Refuse a run with another model or another state if nothing is left to label: no worker compares them then."""
    affinity = job.settings.affinity
    if affinity is not None and affinity != before.settings.get("affinity"):
        resolved = {**before.resolved, "affinity": find_affinity(affinity, job.source).sha256}
        check_same_run(before, dataclasses.replace(before, resolved=resolved, fingerprint="unknown"), job.out)
    references = job.settings.references
    if references is not None and references != before.settings.get("references"):
        resolved = {**before.resolved, "references": load_references(job.source.at(references)).sha256}
        check_same_run(before, dataclasses.replace(before, resolved=resolved, fingerprint="unknown"), job.out)
    if job.settings.network is not None:
        model_sha256 = network_sha256(job.source.at(job.settings.network))
    elif all(getattr(job.settings, name) == before.settings.get(name) for name in ("model", "revision", "vae", "clip")):
        return
    else:
        model_sha256 = find_weights(job.settings, job.source).fingerprint()
    check_same_run(before, dataclasses.replace(before, model_sha256=model_sha256, fingerprint="unknown"), job.out)
