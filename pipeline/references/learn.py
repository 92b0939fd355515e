"""Learn references of names from the features of a run (`label --features`); `pipeline.references.state` has the files.

The rows are read twice, one label shard at a time: first the names of all images and the mean feature, then the
features of the images that were retrieved. Memory grows with the number of names times the images of each, not with the
run. The same run gives the same bytes, in whatever order its shards are read, and by however many actors.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from diffseg.reference_state import References
from diffseg.references import ImageSegments, Seed, background_centroids, centroids_of, fit_references
from pipeline.digest import short_digest
from pipeline.output.commit import LabelShard
from pipeline.output.manifest import Manifest
from pipeline.output.records import read_run_commits
from pipeline.references.retrieve import Candidate, ReferenceSettings, Retrieval, unique_key
from pipeline.references.state import REFERENCES, REPORT, RETRIEVAL, ReferenceReport, binding, read_report
from pipeline.references.table import retrieval_file
from pipeline.references.worker import ReferenceJob, ReferenceTask, ReferenceWorker, read_features, read_found
from pipeline.storage import SourceError, Storage
from pipeline.storage.folder import delete_files


class Collect(Protocol):
    """Does tasks with workers of a class, as `pipeline.executor.collect.collect` does on Ray."""

    def __call__(
        self, worker: type[ReferenceWorker], job: ReferenceJob, tasks: Sequence[ReferenceTask]
    ) -> Iterable[str]: ...


def in_this_process(worker: type[ReferenceWorker], job: ReferenceJob, tasks: Sequence[ReferenceTask]) -> Iterable[str]:
    """Do tasks one after the other."""
    local = worker(job)
    return map(local.collect, tasks)


def learn_references(
    out: Storage,
    manifest: Manifest,
    settings: ReferenceSettings,
    state: Storage,
    *,
    collect: Collect = in_this_process,
    on_shard: Callable[[], None] = lambda: None,
) -> ReferenceReport:
    """Learn references from a run and write them to the folder `state`. After a kill, the same call continues.

    Args:
        out: OUT of the run.
        manifest: Its run.json.
        settings: How the references are learned.
        state: Folder to write.
        collect: Does the work on label shards.
        on_shard: Called for each label shard whose images of each name are known.

    Returns:
        The report, which may be that of an earlier call with the same fingerprint.

    Raises:
        SourceError: The run has no features, or no image shows a name.
        ValueError: The settings do not fit the run.
    """
    try:
        bound = binding(manifest)
    except ValueError as error:
        raise SourceError(f"{out.redacted}: {error}") from None
    shards = sorted(read_run_commits(out, manifest).done)
    fingerprint = short_digest(json.dumps([settings.plain(), manifest.fingerprint, [shard.tag for shard in shards]]))
    if (report := read_report(state)) is not None and report.fingerprint == fingerprint:
        return report
    job = ReferenceJob(settings=settings, fingerprint=fingerprint, out=out, parts=state.at(f"{state.url}.parts"))
    found = _find_images(job, shards, collect, on_shard)
    ranked = found.ranked()
    contexts = sorted(ranked, key=lambda name: (-found.counts[name], name))[: settings.contexts]
    learned = _learn(job, found, ranked, contexts, collect)
    references = References(
        names=learned.names,
        vectors=learned.vectors,
        owners=learned.owners,
        mean=found.mean,
        bound=bound,
        settings=settings.plain() | {"contexts": contexts, "run": manifest.fingerprint},
    )
    report = ReferenceReport(
        fingerprint=fingerprint,
        images=found.images,
        names=_facts(learned.names, found, ranked, learned.seeds),
        contexts=contexts,
        settings=settings.plain(),
        problems=found.problems,
        unused=found.unused,
        route=route_of(settings, manifest),
    )
    state.write_bytes(REFERENCES, references.to_bytes())
    state.write_bytes(RETRIEVAL, retrieval_file(learned.names, ranked, learned.seeds))
    state.write_bytes(REPORT, json.dumps(dataclasses.asdict(report), indent=1, sort_keys=True).encode() + b"\n")
    delete_files(job.parts, (".json", ".safetensors"))  # also those that earlier calls with other settings have left
    return report


def route_of(settings: ReferenceSettings, manifest: Manifest) -> str:
    """Return in words what says that an image shows a name."""
    if settings.by == "names":
        stages = manifest.resolved.get("method", [])
        by = next((words for stage, words in NAMERS.items() if stage in stages), "the run")
        return f"names of segments, given by {by}"
    field = settings.naming.labels_field
    return (
        f"labels of samples, field {field}" if field else f"captions of samples, field {settings.naming.caption_field}"
    )


NAMERS = {"cross": "cross-attention", "clip": "a CLIP", "references": "references"}
"""What named the segments of a run, by the stage of its method."""


def _find_images(
    job: ReferenceJob, shards: Sequence[LabelShard], collect: Collect, on_shard: Callable[[], None]
) -> Retrieval:
    """Return the images of each name, from the files that earlier calls have written and from new ones.

    Raises:
        SourceError: No image shows a name.
    """
    missing = [ReferenceTask(shard=shard) for shard in shards if read_found(job, shard) is None]
    for _ in range(len(shards) - len(missing)):
        on_shard()
    if missing:
        for _ in collect(ReferenceWorker, job, missing):
            on_shard()
    found = Retrieval(job.settings)
    for shard in shards:  # read again, because the reported problems depend on the order
        of_shard = read_found(job, shard)
        assert of_shard is not None
        found.add(of_shard)
    if not found.candidates:
        example = f"; for example {found.problems[0]}" if found.problems else ""
        raise SourceError(f"{job.out.redacted}: no labelled image shows a name{example}")
    return found


class Learned(NamedTuple):
    """The fields of `References` that are learned from the retrieved images, and the seeds of each name."""

    names: tuple[str, ...]
    vectors: np.ndarray
    owners: np.ndarray | None
    seeds: Mapping[str, Sequence[Seed]]


def _learn(
    job: ReferenceJob,
    found: Retrieval,
    ranked: Mapping[str, Sequence[Candidate]],
    contexts: Sequence[str],
    collect: Collect,
) -> Learned:
    """Learn the references of all names from their retrieved images."""
    images = _read_images(job, {c for chosen in ranked.values() for c in chosen}, found.mean, collect)
    of_names = {name: [images[c.shard, c.row] for c in ranked[name]] for name in sorted(ranked)}
    means, seeds = fit_references(of_names, contexts, job.settings.elimination)
    names = tuple(_order(job.settings, ranked))
    vectors, owners = _vectors(names, of_names, means, seeds, job.settings)
    return Learned(names, vectors, owners, seeds)


def _read_images(
    job: ReferenceJob, wanted: Collection[Candidate], mean: np.ndarray, collect: Collect
) -> dict[tuple[LabelShard, int], ImageSegments]:
    """Return images with their features relative to the mean, by label shard and index."""
    of_shard: dict[LabelShard, dict[int, Candidate]] = {}
    for candidate in wanted:
        of_shard.setdefault(candidate.shard, {})[candidate.row] = candidate
    tasks = [ReferenceTask(shard=shard, rows=tuple(sorted(rows))) for shard, rows in sorted(of_shard.items())]
    if missing := [task for task in tasks if read_features(job, task) is None]:
        for _ in collect(ReferenceWorker, job, missing):
            pass
    has_background = job.settings.background > 0 and job.settings.by == "names"
    images = {}
    for task in tasks:
        tensors = read_features(job, task)
        assert tensors is not None
        for row, candidate in of_shard[task.shard].items():
            background = tuple(tensors[f"{row}.background"].tolist()) if has_background else None
            images[task.shard, row] = ImageSegments(
                key=unique_key(candidate),
                features=tensors[f"{row}"].astype(np.float32) - mean.astype(np.float32),
                names=candidate.names,
                background=background,
            )
    return images


def _vectors(
    names: Sequence[str],
    images: Mapping[str, Sequence[ImageSegments]],
    means: Mapping[str, np.ndarray],
    seeds: Mapping[str, Sequence[Seed]],
    settings: ReferenceSettings,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the vectors and owners of `References`."""
    if settings.centroids == 1 and not settings.background:
        return np.stack([means[name] for name in names]), None
    vectors, owners = np.stack([means[name] for name in names]), np.arange(len(names))
    if settings.centroids > 1:
        vectors, owners = centroids_of(images, seeds, names, settings.centroids)
    if settings.background:
        all_images = (image for of_name in images.values() for image in of_name)
        others, none = background_centroids(all_images, means, settings.background)
        vectors, owners = np.concatenate([vectors, others]), np.concatenate([owners, none])
    return vectors, owners


def _facts(
    names: Sequence[str],
    found: Retrieval,
    ranked: Mapping[str, Sequence[Candidate]],
    seeds: Mapping[str, Sequence[Seed]],
) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "images": found.counts[name],
            "retrieved": len(ranked[name]),
            "copies": len(ranked[name]) - len(seeds[name]),
            "support": float(np.mean([seed.support for seed in seeds[name]])),
        }
        for name in names
    }


def _order(settings: ReferenceSettings, names: Collection[str]) -> list[str]:
    """Return the names in the order of the vocabulary; names without a vocabulary are sorted."""
    return [name for name in settings.naming.names if name in names] or sorted(names)
