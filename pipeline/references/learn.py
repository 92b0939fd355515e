"""Learn references of names from the features of a run (`label --features`), for `diffseg name`.

    STATE/references.safetensors   the references, see `diffseg.references.References`
    STATE/retrieval.parquet        the images that were retrieved for each name, with their seeds
    STATE/report.json              the report, written last

The rows are read twice: first the names of all images and the mean feature, then the features of the images that were
retrieved. Memory grows with the number of names times the images of each, not with the run. The same run gives the same
bytes, whatever the order of its shards.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffseg.references import References, fit_references, read_references
from pipeline.bounded_json import read_bounded
from pipeline.digest import short_digest
from pipeline.output.manifest import Manifest
from pipeline.output.records import read_run_commits
from pipeline.output.schemas import DOCUMENT_BYTES, parse_object
from pipeline.references.retrieve import ReferenceSettings, Retrieval, features_of, retrieval_file
from pipeline.storage import SourceError, Storage

REFERENCES, RETRIEVAL, REPORT = "references.safetensors", "retrieval.parquet", "report.json"
MOST_BYTES = 2**30
"""Largest file of references that is read."""


@dataclass(frozen=True, kw_only=True)
class ReferenceReport:
    """What was learned.

    Attributes:
        fingerprint: Digest of the settings and of the rows.
        images: Labelled images of the run.
        names: For each name the images that show it, those that were retrieved, copies among them, and the mean support
            of the seeds, at most 1; it is low where the images do not share an object.
        contexts: Names whose resemblance was eliminated, in order.
        settings: The settings.
        problems: Why images could not be used, the first ones.
        unused: How many images could not be used.
    """

    fingerprint: str
    images: int
    names: Mapping[str, Mapping[str, float]]
    contexts: list[str]
    settings: Mapping[str, Any]
    problems: list[str]
    unused: int


def binding(manifest: Manifest) -> dict[str, Any]:
    """Return what the features of a run depend on. Raises ValueError if it has none."""
    if not manifest.settings.get("features", False):
        raise ValueError("its rows have no features; label the images with --features")
    resolved = manifest.resolved
    return {
        "model_sha256": manifest.model_sha256,
        "timestep": resolved["timestep"],
        "resolution": resolved["resolution"],
        "layers": list(resolved["features"]),
    }


def learn_references(
    out: Storage,
    manifest: Manifest,
    settings: ReferenceSettings,
    state: Storage,
    *,
    on_shard: Callable[[], None] = lambda: None,
) -> ReferenceReport:
    """Learn references from a run and write them to the folder `state`.

    Args:
        out: OUT of the run.
        manifest: Its run.json.
        settings: How the references are learned.
        state: Folder to write.
        on_shard: Called whenever a label shard has been read.

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
    plain = json.loads(json.dumps(dataclasses.asdict(settings)))
    fingerprint = short_digest(json.dumps([plain, manifest.fingerprint, [shard.tag for shard in shards]]))
    if (report := _read_report(state)) is not None and report.fingerprint == fingerprint:
        return report
    found = Retrieval(settings)
    for shard in shards:
        found.read(out, shard)
        on_shard()
    if not found.candidates:
        example = f"; for example {found.problems[0]}" if found.problems else ""
        raise SourceError(f"{out.redacted}: no labelled image shows a name{example}")
    ranked = found.ranked()
    mean = found.sum / max(1, found.images)
    features = features_of(out, {candidate for chosen in ranked.values() for candidate in chosen}, mean)
    contexts = sorted(ranked, key=lambda name: (-found.counts[name], name))[: settings.contexts]
    vectors, seeds = fit_references(
        {name: [features[candidate.shard, candidate.row] for candidate in ranked[name]] for name in sorted(ranked)},
        contexts,
        settings.elimination,
    )
    names = tuple(_order(settings, ranked))
    references = References(
        names=names,
        vectors=np.stack([vectors[name] for name in names]),
        mean=mean,
        bound=bound,
        settings=plain | {"contexts": contexts, "run": manifest.fingerprint},
    )
    report = ReferenceReport(
        fingerprint=fingerprint,
        images=found.images,
        names={
            name: {
                "images": found.counts[name],
                "retrieved": len(ranked[name]),
                "copies": len(ranked[name]) - len(seeds[name]),
                "support": float(np.mean([seed.support for seed in seeds[name]])),
            }
            for name in names
        },
        contexts=contexts,
        settings=plain,
        problems=found.problems,
        unused=found.unused,
    )
    state.write_bytes(REFERENCES, references.to_bytes())
    state.write_bytes(RETRIEVAL, retrieval_file(names, ranked, seeds))
    state.write_bytes(REPORT, json.dumps(dataclasses.asdict(report), indent=1, sort_keys=True).encode() + b"\n")
    return report


def load_references(state: Storage) -> References:
    """Read the references of a folder that `learn_references` wrote. Raises SourceError if there are none."""
    try:
        return read_references(read_bounded(state, REFERENCES, MOST_BYTES), state.joined(REFERENCES))
    except (FileNotFoundError, ValueError) as error:
        raise SourceError(
            f"{state.redacted}: expected the STATE of `diffseg fit references`, a folder ({error})"
        ) from error


def _order(settings: ReferenceSettings, names: Collection[str]) -> list[str]:
    """Return the names in the order of the vocabulary; names without a vocabulary are sorted."""
    return [name for name in settings.naming.names if name in names] or sorted(names)


def _read_report(state: Storage) -> ReferenceReport | None:
    """Return the report of an earlier call; None if it did not finish."""
    try:
        report = ReferenceReport(**parse_object(read_bounded(state, REPORT, DOCUMENT_BYTES)))
        return report if state.is_file(REFERENCES) and state.is_file(RETRIEVAL) else None
    except (FileNotFoundError, ValueError, TypeError):
        return None
