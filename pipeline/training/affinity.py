"""Fit an affinity to the labels of a run with its model frozen; `diffseg.affinity.state` describes the kinds.

    FOLDER/NAME.parts/<shard>.safetensors   features of the images of a label shard
    FOLDER/NAME                             the fitted state, written once all features exist
    FOLDER/NAME.json                        the report, written last

Workers collect the features one label shard at a time, and each file is written atomically, so a command that was
stopped continues with the shards that are missing. The state is then fitted in this process, and is always the same for
the same features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipeline.bounded_json import read_bounded
from pipeline.digest import short_digest
from pipeline.executor.collect import collect
from pipeline.output.manifest import Manifest
from pipeline.output.records import read_run_commits
from pipeline.output.schemas import DOCUMENT_BYTES, parse_object
from pipeline.readers.samples import Shard
from pipeline.settings import RunSettings
from pipeline.storage import SourceError, Storage
from pipeline.storage.folder import delete_files
from pipeline.training.feature_worker import (
    CollectedFeatures,
    FeatureTask,
    FeatureWorker,
    FitJob,
    kind_module,
    read_features,
)
from pipeline.training.settings import FitSettings
from pipeline.weights import find_weights

HELD_OUT = 5
"""Every fifth image is held out to measure generalisation."""


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What was fitted, and how well it predicts held-out pairs.

    Attributes:
        fingerprint: Fingerprint of the fit.
        kind: Kind of affinity.
        model: The run's model.
        model_sha256: SHA-256 of its weights.
        images: Number of images that were fitted to.
        held_out: Number of images that were held out.
        auc: ROC AUC of the affinity over held-out same-segment and different-segment pairs; 0.5 is chance, None without
            held-out pairs of both kinds.
        layout: Layout of the state, see `diffseg.affinity.state.AffinityState`.
        settings: The fit's settings.
        problems: Why other images were left out.
    """

    fingerprint: str
    kind: str
    model: str
    model_sha256: str
    images: int
    held_out: int
    auc: float | None
    layout: Mapping[str, int]
    settings: Mapping[str, Any]
    problems: Sequence[str] = field(default_factory=list)


def plan_tasks(job: FitJob, manifest: Manifest, sources: Mapping[str, Shard]) -> list[FeatureTask]:
    """Draw label shards at random until they hold the requested number of images.

    Raises:
        SourceError: Fewer than two labelled images have a source shard.
    """
    commits = read_run_commits(job.out, manifest).done
    ok_rows = {shard: commit.counts.get("ok", 0) for shard, commit in commits.items()}
    names = sorted(name for name, ok in ok_rows.items() if ok and name in sources)
    tasks: list[FeatureTask] = []
    first = 0
    for drawn in np.random.default_rng(job.settings.seed).permutation(len(names)):
        if first >= job.settings.images:
            break
        name = names[drawn]
        count = min(ok_rows[name], job.settings.images - first)
        tasks.append(FeatureTask(shard=name, source=sources[name], first=first, count=count))
        first += count
    if first < 2:
        raise SourceError(
            f"{job.out.redacted}: has {first} labelled images whose source shard exists; at least 2 are needed"
        )
    return tasks


def fit(
    job: FitJob,
    tasks: Sequence[FeatureTask],
    folder: Storage,
    name: str,
    *,
    run: RunSettings,
    workers: int = 1,
    on_shard: Callable[[], None] = lambda: None,
) -> FitReport:
    """Collect missing features, fit the affinity to all of them, and write the state and the report.

    Args:
        job: What is fitted.
        tasks: The label shards to use.
        folder: Folder of the state.
        name: File name of the state.
        run: Ray cluster, or none.
        workers: Number of Ray actors.
        on_shard: Called for each label shard whose features exist.

    Returns:
        The report, which may be that of an earlier call with the same fingerprint.

    Raises:
        AffinityError: No image has a usable pair of labels.
    """
    if (report := read_report(folder, name)) is not None and report.fingerprint == job.fingerprint:
        return report
    missing = [task for task in tasks if read_features(job, task) is None]
    for _ in range(len(tasks) - len(missing)):
        on_shard()
    gpus = run.gpus_per_worker if job.device.startswith("cuda") else 0
    for _ in collect(FeatureWorker, job, missing, run=run, workers=workers, threads=job.threads, gpus=gpus):
        on_shard()
    report, data = _fit_state(job, tasks)
    folder.write_bytes(name, data)
    folder.write_bytes(f"{name}.json", json.dumps(asdict(report), indent=1, sort_keys=True).encode() + b"\n")
    delete_files(job.parts, (".safetensors",))  # also those that earlier calls with other settings have left
    return report


def read_report(folder: Storage, name: str) -> FitReport | None:
    """Return the report of an earlier call; None if it did not finish or its state does not exist."""
    try:
        report = parse_object(read_bounded(folder, f"{name}.json", DOCUMENT_BYTES))
        return FitReport(**report) if folder.is_file(name) else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def fit_fingerprint(settings: FitSettings, manifest: Manifest) -> str:
    """Return the fingerprint of a fit: 16 hexadecimal digits of its settings and of the run."""
    return short_digest(json.dumps([asdict(settings), manifest.fingerprint, manifest.shards], sort_keys=True))


def _fit_state(job: FitJob, tasks: Sequence[FeatureTask]) -> tuple[FitReport, bytes]:
    """Fit the affinity to the collected features; return the report and the bytes of the state."""
    import torch

    from diffseg.affinity.pairs import roc_auc
    from diffseg.affinity.state import AffinityError, AffinityState

    images, problems, last = _read_all_features(job, tasks)
    held_out = [images[number] for number in sorted(images) if number % HELD_OUT == HELD_OUT - 1]
    fitted = [images[number] for number in sorted(images) if number % HELD_OUT != HELD_OUT - 1]
    if not fitted:
        example = f", such as {problems[0]}" if problems else ""
        raise AffinityError(f"no image has a usable pair of labels; {len(problems)} images could not be read{example}")
    torch.set_num_threads(job.threads)  # the last bits of sums, and so of the state, depend on it
    kind = kind_module(job.settings.kind)
    tensors, layout = kind.fit(fitted, job.device)
    predictions = [kind.predict(tensors, features) for features in held_out]
    auc = roc_auc(*map(np.concatenate, zip(*predictions, strict=True))) if predictions else math.nan
    state = AffinityState(
        kind=job.settings.kind,
        model=job.model.model,
        model_sha256=find_weights(job.model, job.source).fingerprint(),
        timestep=job.timestep,
        resolution=job.resolution,
        layout=layout,
        tensors=tensors,
        layers={grid: last.layers[grid] for grid in layout},
        conditioning=last.conditioning,
    )
    report = FitReport(
        fingerprint=job.fingerprint,
        kind=state.kind,
        model=state.model,
        model_sha256=state.model_sha256,
        images=len(fitted),
        held_out=len(held_out),
        auc=None if math.isnan(auc) else auc,
        layout=layout,
        settings=asdict(job.settings),
        problems=problems,
    )
    return report, state.to_bytes()


def _read_all_features(
    job: FitJob, tasks: Sequence[FeatureTask]
) -> tuple[dict[int, dict[str, Any]], list[str], CollectedFeatures]:
    """Return the features of all images by number, the images that could not be read, and the file of the last shard.

    The passes of all shards have the same layers and the same conditioning.
    """
    images: dict[int, dict[str, Any]] = {}
    problems: list[str] = []
    shards: list[CollectedFeatures] = []
    for task in tasks:
        collected = read_features(job, task)
        assert collected is not None
        shards.append(collected)
        problems += collected.problems
        for key, tensor in collected.tensors.items():
            number, _, name = key.partition(".")
            images.setdefault(int(number), {})[name] = tensor
    return images, problems, shards[-1]
