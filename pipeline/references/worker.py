"""The work on one label shard of `diffseg fit references`: find its images of each name, or read their features.

    STATE.parts/<shard>.json          the images of a label shard that show each name
    STATE.parts/<shard>.safetensors   the features of the retrieved ones

Each file is written atomically and names the fit that it belongs to, so a command that was stopped continues with the
label shards that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from diffseg.safetensors_metadata import read_metadata
from diffseg.segmentation import BACKGROUND
from pipeline.bounded_json import read_bounded
from pipeline.output.commit import LabelShard
from pipeline.output.reader import label_rows
from pipeline.output.rows import FEATURE_COLUMNS
from pipeline.output.schemas import parse_object
from pipeline.readers.names import NameReader
from pipeline.references.retrieve import FoundImages, ReferenceSettings, find_images
from pipeline.storage import SourceError, Storage

PART_BYTES = 2**30
"""Largest file of a label shard that is read."""


@dataclass(frozen=True, kw_only=True)
class ReferenceJob:
    """Everything a worker needs to start.

    Attributes:
        settings: How the references are learned.
        fingerprint: Fingerprint of this fit; files of another fit are not used.
        out: OUT of the run.
        parts: Folder of the files of label shards.
    """

    settings: ReferenceSettings
    fingerprint: str
    out: Storage
    parts: Storage


@dataclass(frozen=True, kw_only=True)
class ReferenceTask:
    """The work on one label shard.

    Attributes:
        shard: The label shard.
        rows: Indices of the rows whose features are read; None to find the images of each name.
    """

    shard: LabelShard
    rows: tuple[int, ...] | None = None


class ReferenceWorker:
    """A worker, which does the work on one label shard after another."""

    def __init__(self, job: ReferenceJob) -> None:
        self.job = job
        self._reader = NameReader(job.settings.naming) if job.settings.by == "labels" else None

    def collect(self, task: ReferenceTask) -> str:
        """Write the file of a label shard, and return the shard's name."""
        job = self.job
        if task.rows is None:
            found = find_images(job.out, task.shard, job.settings, self._reader).to_json()
            data = json.dumps({"fingerprint": job.fingerprint, "found": found}).encode()
            job.parts.write_bytes(f"{task.shard}.json", data)
        else:
            tensors = features_of(job.out, task.shard, task.rows)
            data = save(tensors, metadata={"fingerprint": job.fingerprint})
            job.parts.write_bytes(f"{task.shard}.safetensors", data)
        return str(task.shard)


def features_of(out: Storage, shard: LabelShard, rows: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return the features of some rows of a label shard, and which of their segments are background.

    Returns:
        For each row its features, float16 [n, 256], by its index, and the numbers of the segments that are named
        `background`, int32, by INDEX.background.
    """
    wanted, tensors = set(rows), {}
    for row in label_rows(out, shard, ["index", "n_segments", "segments", FEATURE_COLUMNS[1]]):
        if row["index"] in wanted:
            numbers = [number for number, segment in enumerate(row["segments"]) if segment["name"] == BACKGROUND]
            tensors[f"{row['index']}"] = stored_features(row)
            tensors[f"{row['index']}.background"] = np.array(numbers, np.int32)
    return tensors


def stored_features(row: Mapping[str, Any]) -> np.ndarray:
    """Return the features of a row's segments, float16 [n_segments, 256]. Raises SourceError if they do not fit."""
    data, count = row[FEATURE_COLUMNS[1]] or b"", row["n_segments"]
    if not count or len(data) % (2 * count):
        raise SourceError(f"row {row['index']}: its {count} segments do not fit {len(data)} bytes of features")
    return np.frombuffer(data, "<f2").reshape(count, -1)


def read_found(job: ReferenceJob, shard: LabelShard) -> FoundImages | None:
    """Return the images of a label shard; None if the file is missing, damaged, or belongs to another fit."""
    try:
        fields = parse_object(read_bounded(job.parts, f"{shard}.json", PART_BYTES))
        return FoundImages.from_json(fields["found"], shard) if fields["fingerprint"] == job.fingerprint else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def read_features(job: ReferenceJob, task: ReferenceTask) -> dict[str, np.ndarray] | None:
    """Return what `features_of` returned; None if the file is missing, damaged, or belongs to another fit."""
    try:
        data = read_bounded(job.parts, f"{task.shard}.safetensors", PART_BYTES)
        tensors = load(data) if read_metadata(data)["fingerprint"] == job.fingerprint else {}
    except (FileNotFoundError, SafetensorError, ValueError, KeyError):
        return None
    return tensors if {f"{row}" for row in task.rows or ()} <= tensors.keys() else None
