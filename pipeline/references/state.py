"""The folder STATE of `diffseg fit references`, and what ties it to a run.

STATE/references.safetensors   the references, see `diffseg.reference_state.References`
STATE/retrieval.parquet        the images that were retrieved for each name, with their seeds
STATE/report.html              a page with these images and seeds
STATE/report.json              the report, written last
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffseg.reference_state import FILE_NAME, References, pass_conditions, read_references
from pipeline.bounded_json import read_bounded
from pipeline.output.manifest import Manifest
from pipeline.output.schemas import DOCUMENT_BYTES, parse_object
from pipeline.readers.samples import shorten
from pipeline.settings import LabelSettings
from pipeline.storage import SourceError, Storage, redact

REFERENCES, RETRIEVAL, REPORT = FILE_NAME, "retrieval.parquet", "report.json"
MOST_BYTES = 2**30
"""Largest file of references that is read."""


@dataclass(frozen=True, kw_only=True)
class ReferenceReport:
    """What was learned.

    Attributes:
        fingerprint: Digest of the settings and of the rows.
        images: Number of labelled images of the run.
        names: For each name the number of images that show it, of those that were retrieved and of copies among these,
            and the mean support of the seeds, at most 1, which is low if the images do not share an object.
        contexts: Names whose lookalikes count less for the other names, in order.
        settings: The settings.
        problems: Why images could not be used; the first reasons.
        unused: How many images could not be used.
        route: What said that an image shows a name, in words.
    """

    fingerprint: str
    images: int
    names: Mapping[str, Mapping[str, float]]
    contexts: list[str]
    settings: Mapping[str, Any]
    problems: list[str]
    unused: int
    route: str = ""


def binding(manifest: Manifest) -> dict[str, Any]:
    """Return what the features of a run depend on. Raises ValueError if it has no features."""
    if not manifest.settings.get("features", False):
        raise ValueError("its rows have no features; label the images with --features")
    resolved = manifest.resolved
    return pass_conditions(
        model_sha256=resolved.get("checkpoint_sha256", manifest.model_sha256),
        timestep=resolved["timestep"],
        resolution=resolved["resolution"],
        layers=resolved["features"],
        conditioning=resolved.get("conditioning", {}),
    )


def load_references(state: Storage) -> References:
    """Read the references of a folder that `diffseg fit references` wrote. Raises SourceError if that fails."""
    try:
        return read_references(read_bounded(state, REFERENCES, MOST_BYTES), state.joined(REFERENCES))
    except (FileNotFoundError, ValueError) as error:
        raise SourceError(
            f"{state.redacted}: expected the STATE of `diffseg fit references`, a folder ({error})"
        ) from error


def with_references(settings: LabelSettings, store: Storage) -> LabelSettings:
    """Return the settings of a run, completed by the names of its references if it has references but no names.

    Args:
        settings: The settings that the user gave.
        store: Options for the store of the references.

    Raises:
        SourceError: The references are missing or damaged.
        ValueError: A name of the run has no reference.
    """
    if settings.references is None:
        return settings
    known = load_references(store.at(settings.references)).names
    names = settings.naming.names or known
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"name {shorten(unknown[0], 100)!r}: has no reference in {redact(settings.references)}, which has those of "
            f"{shorten(', '.join(known), 300)}"
        )
    return dataclasses.replace(settings, naming=dataclasses.replace(settings.naming, names=names))


def read_report(state: Storage) -> ReferenceReport | None:
    """Return the report of an earlier call; None if it did not finish."""
    try:
        report = ReferenceReport(**parse_object(read_bounded(state, REPORT, DOCUMENT_BYTES)))
        return report if state.is_file(REFERENCES) and state.is_file(RETRIEVAL) else None
    except (FileNotFoundError, ValueError, TypeError):
        return None
