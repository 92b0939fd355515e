"""Runs with planted features: each image has strips as segments, and their features and its fields are given."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffseg import Segment, Segmentation
from diffseg.segmentation import Features
from pipeline.output.commit import Commit, tag_of, write_commit
from pipeline.output.manifest import Manifest, write_manifest
from pipeline.output.rows import failed_row, labelled_row
from pipeline.output.writer import LabelShardWriter
from pipeline.readers.names import NameSettings
from pipeline.readers.samples import Sample
from pipeline.settings import LabelSettings
from pipeline.storage import Storage

FINGERPRINT = "0123456789abcdef"
SIZE = 256

NAMES = ("cat", "dog", "sky")
DIRECTIONS = dict(zip(NAMES, np.eye(SIZE)[:3], strict=True))
BY_LABELS = NameSettings(names=NAMES, labels_field="labels")


class PlantedImage(NamedTuple):
    """An image of a planted run.

    Attributes:
        features: float [n, 256] of its segments, of length at most 1.
        fields: The fields of its sample.
        names: Names of its segments; empty for none.
    """

    features: np.ndarray
    fields: Mapping[str, Any] = {}
    names: Sequence[str | None] = ()


def planted_images(count: int = 24) -> dict[str, PlantedImage | None]:
    """Return images of a cat or a dog in a random place, all with a sky; every fifth shows neither and no sky."""
    generator = np.random.default_rng(0)
    images: dict[str, PlantedImage | None] = {}
    for number in range(count):
        shown = [] if number % 5 == 4 else [NAMES[number % 2], "sky"]
        features = generator.standard_normal((5, SIZE)) / SIZE**0.5
        places = generator.permutation(5)
        for place, name in zip(places, shown, strict=False):
            features[place] = DIRECTIONS[name] + (0.2 if name == "sky" else 0.5) * features[place]
        names = [dict(zip(places, shown, strict=False)).get(place) for place in range(5)]
        key = f"{number:03}.png"
        images[key] = PlantedImage(features=0.5 * features, fields={"labels": shown}, names=names)
    return images


def write_feature_run(
    out: Path,
    images: Mapping[str, PlantedImage | None],
    *,
    per_shard: int = 4,
    naming: NameSettings | None = None,
    model_sha256: str = "m",
) -> None:
    """Write OUT of a run with features; None is an image that could not be decoded."""
    storage, keys = Storage(url=str(out)), list(images)
    shards = [keys[start : start + per_shard] for start in range(0, len(keys), per_shard)]
    settings = LabelSettings(naming=naming or NameSettings(), features=True)
    for number, group in enumerate(shards):
        shard, tag = f"{number:05}", tag_of(FINGERPRINT, "")
        with LabelShardWriter(shard, formats=("parquet",), metadata={"tag": tag}, features=True) as writer:
            for index, key in enumerate(group):
                writer.add(_row(shard, index, key, images[key], settings.naming.names))
            files = writer.publish(storage)
        ok = sum(images[key] is not None for key in group)
        counts = {"ok": ok, "undecodable": len(group) - ok}
        commit = Commit(
            shard=shard, state="done", fingerprint=FINGERPRINT, attempt=1, inputs="", rows=len(group), counts=counts
        )
        write_commit(storage, dataclasses.replace(commit, files=files))
    manifest = Manifest(
        source="gone",
        settings=settings.plain(),
        model_sha256=model_sha256,
        resolved={"tau": [1.0], "timestep": 1, "resolution": 64, "method": ["diffseg"], "features": ["a", "b"]},
        environment={},
        fingerprint=FINGERPRINT,
        shards=len(shards),
    )
    write_manifest(storage, manifest)


def _row(shard: str, index: int, key: str, image: PlantedImage | None, vocabulary: Sequence[str]) -> Any:
    if image is None:
        return failed_row(Sample(index=index, key=key, image=None), shard, "undecodable", "planted failure")
    count = len(image.features)
    labels = np.repeat(np.arange(count, dtype=np.uint16), 2)[None].repeat(3, axis=0)
    segments = tuple(
        Segment(
            id=number,
            area=6,
            bbox=(2 * number, 0, 2, 3),
            confidence=0.5,
            name=image.names[number] if image.names else None,
            name_score=0.25 if image.names else None,
        )
        for number in range(count)
    )
    features = Features(
        image=image.features.mean(axis=0).astype(np.float16), segments=image.features.astype(np.float16)
    )
    result = Segmentation(labels=labels, segments=segments, confidence=0.5, features=features)
    meta = json.dumps(image.fields) if image.fields else ""
    return labelled_row(Sample(index=index, key=key, image=None, meta=meta), shard, result, vocabulary)
