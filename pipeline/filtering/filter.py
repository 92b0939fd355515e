"""Scores the rows of a run and decides which are kept, on Ray or in this process.

    OUT/filter/parts/<fingerprint>/fold-<n>/   the network of each fold, as `diffseg train` writes it
    OUT/filter/parts/<fingerprint>/scores/     the scores of each label shard
    OUT/filter/keep.parquet                    all scores and decisions; the parts are deleted then
    OUT/filter/filter.json                     the report

A command that was stopped continues with the folds and the label shards that are missing, and writes the same bytes.
With other thresholds it uses the scores in the table, and trains no network.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pipeline.digest import short_digest
from pipeline.executor.collect import collect
from pipeline.filtering.decide import decide
from pipeline.filtering.report import FilterReport, make_report
from pipeline.filtering.settings import FoldSettings, KeepSettings
from pipeline.filtering.worker import SCORES, FilterJob, FoldWorker, ScoreTask, ScoreWorker, score_path
from pipeline.networks.files import CONFIG
from pipeline.output.commit import LabelShard
from pipeline.output.keep import FOLDER, REPORT, SCORE_FIELDS, TABLE, labels_digest, read_table, table_bytes
from pipeline.output.manifest import Manifest, is_generated
from pipeline.output.reader import label_rows
from pipeline.output.records import read_run_commits
from pipeline.output.selection import split_of
from pipeline.output.source_images import find_source_shards
from pipeline.readers.samples import Shard
from pipeline.settings import RunSettings
from pipeline.storage import SourceError, Storage
from pipeline.storage.folder import is_local
from pipeline.training.recipes.settings import Target

PARTS = f"{FOLDER}/parts"


def filter_run(
    out: Storage,
    manifest: Manifest,
    settings: FoldSettings,
    thresholds: KeepSettings,
    *,
    images: str | None = None,
    run: RunSettings,
    workers: int = 1,
    device: str = "cpu",
    threads: int = 1,
    on_start: Callable[[int], None] = lambda parts: None,
    on_part: Callable[[], None] = lambda: None,
) -> FilterReport:
    """Score all rows of a run with a label map, and write OUT/filter.

    Args:
        out: OUT of the run.
        manifest: Its run.json.
        settings: The networks of the folds.
        thresholds: Which rows are kept.
        images: Where the images of SRC are now; None for the location in run.json.
        run: The Ray cluster, or work in this process.
        workers: Number of Ray actors.
        device: Device of the networks.
        threads: CPU threads of each worker.
        on_start: Called with the number of networks and label shards that are not done yet.
        on_part: Called after each of them.

    Returns:
        The report.

    Raises:
        SourceError: The run has no labelled rows, or too few for a batch, or its source images are missing.
    """
    commits = read_run_commits(out, manifest).done
    labels = labels_digest(commits)
    target: Target = "classes" if manifest.settings.get("naming", {}).get("names") else "segments"
    plain = settings.plain(target)
    fingerprint = short_digest(json.dumps([plain, labels], sort_keys=True))
    job = FilterJob(
        settings=settings,
        target=target,
        out=out,
        parts=out.at(f"{out.url}/{PARTS}/{fingerprint}"),
        images=images,
        image_field=manifest.settings["image_field"],
        generated=is_generated(manifest.settings),
        device=device,
        threads=threads,
    )
    if (scored := _scores_in_table(out, fingerprint)) is None:
        shards = [shard for shard, commit in sorted(commits.items()) if commit.counts.get("ok", 0)]
        sources = _sources_of(job, manifest, shards)
        _make_parts(job, shards, sources, run, workers, on_start, on_part)
        scored = _read_parts(job, shards)
    about = {"run": manifest.fingerprint, "labels": labels, "scores": fingerprint, "settings": plain}
    report = _write_decisions(out, *scored, thresholds, about)
    _delete_parts(out)
    return report


def _write_decisions(
    out: Storage, scores: pa.Table, problems: Sequence[str], thresholds: KeepSettings, about: Mapping[str, Any]
) -> FilterReport:
    """Decide which rows are kept, and write the table and the report."""
    table = decide(scores, thresholds)
    report = make_report(table, about, thresholds, problems)
    noted = {**about, "thresholds": report.thresholds, "problems": report.problems}
    out.write_bytes(TABLE, table_bytes(table, noted))
    out.write_bytes(REPORT, json.dumps(asdict(report), indent=1, sort_keys=True).encode() + b"\n")
    return report


def _delete_parts(out: Storage) -> None:
    """Delete the networks and the scores of label shards, also those that earlier calls have left."""
    for path, _ in out.files(PARTS):
        out.delete(path)
    if is_local(out):  # an object store has no folders to remove
        for folder, _, _ in os.walk(f"{out.url}/{PARTS}", topdown=False):
            with suppress(OSError):  # it holds other files, or another process has deleted it
                os.rmdir(folder)


def _sources_of(job: FilterJob, manifest: Manifest, shards: Sequence[LabelShard]) -> dict[str, Shard]:
    """Return the source shards of a run by name. Raises SourceError without label shards, or if one has no source."""
    if not shards:
        raise SourceError(f"{job.out.redacted}: no row of this run has a label map, so there is nothing to filter")
    sources = find_source_shards(manifest, job.out, job.images, out=job.out)
    missing = [shard for shard in shards if shard not in sources]
    if missing:
        raise SourceError(f"{missing[0]}: its source images are no longer at the run's source; pass --images")
    return sources


def _make_parts(
    job: FilterJob,
    shards: Sequence[LabelShard],
    sources: Mapping[str, Shard],
    run: RunSettings,
    workers: int,
    on_start: Callable[[int], None],
    on_part: Callable[[], None],
) -> None:
    """Train the networks of the folds and score the label shards, except those that earlier calls have finished."""
    folds = [fold for fold in range(job.settings.folds) if not job.model(fold).is_file(CONFIG)]
    done = {path for path, _ in job.parts.files(SCORES)}
    tasks = [ScoreTask(shard=shard, source=sources[shard]) for shard in shards if score_path(shard) not in done]
    if folds:
        _check_rows(job, shards)
    on_start(len(folds) + len(tasks))
    with nullcontext() if run.no_ray else _connected(run):
        gpus = run.gpus_per_worker if job.device.startswith("cuda") else 0.0
        for _ in collect(FoldWorker, job, folds, run=run, workers=workers, threads=job.threads, gpus=gpus):
            on_part()
        for _ in collect(ScoreWorker, job, tasks, run=run, workers=workers, threads=job.threads, gpus=gpus):
            on_part()


def _check_rows(job: FilterJob, shards: Sequence[LabelShard]) -> None:
    """Raise SourceError if a fold leaves fewer rows than one batch, before any worker starts."""
    counts: Counter[int] = Counter()
    for shard in shards:
        rows = label_rows(job.out, shard, ("key", "status"))
        counts.update(job.settings.fold_of(split_of(row["key"])) for row in rows if row["status"] == "ok")
    fewest = counts.total() - max(counts.values())
    if fewest < job.settings.batch_size:
        raise SourceError(
            f"{job.out.redacted}: without one of {job.settings.folds} folds, {fewest} of the rows are left, fewer than "
            f"one batch of {job.settings.batch_size}; use more folds or a smaller --batch-size"
        )


def _connected(run: RunSettings) -> Any:
    """Return one connection to Ray for both steps."""
    from pipeline.executor.connection import connected  # takes a second and is needed only with Ray

    return connected(run, ())


def _read_parts(job: FilterJob, shards: Sequence[LabelShard]) -> tuple[pa.Table, list[str]]:
    """Return the scores of all label shards in their order, and why rows have no cv_iou."""
    parts = [read_table(job.parts, score_path(shard))[0] for shard in shards]
    table = pa.concat_tables(parts)
    problems = [problem for problem in table["problem"].to_pylist() if problem is not None]
    return table.select([each.name for each in SCORE_FIELDS]), problems


def _scores_in_table(out: Storage, fingerprint: str) -> tuple[pa.Table, list[str]] | None:
    """Return the scores and the problems of an earlier call; None if it belongs to other labels or settings."""
    try:
        table, about = read_table(out, TABLE)
    except (FileNotFoundError, SourceError):
        return None
    if about.get("scores") != fingerprint:
        return None
    return table.select([each.name for each in SCORE_FIELDS]), about["problems"]
