"""Runs with given label maps: everything in OUT is real except that no model made the labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from diffseg import IGNORE, Segmentation
from diffseg.segmentation import Segment
from pipeline.output.commit import Commit, tag_of, write_commit
from pipeline.output.manifest import Manifest, write_manifest
from pipeline.output.rows import Row, labelled_row
from pipeline.output.writer import LabelShardWriter
from pipeline.readers.find import find_shards
from pipeline.readers.image_groups import group_images
from pipeline.readers.names import NameSettings
from pipeline.readers.samples import Sample
from pipeline.settings import LabelSettings
from pipeline.storage import Storage
from pipeline.storage.backend import ListedFile

FINGERPRINT = "0123456789abcdef"


def write_run(
    out: Path,
    labels: Mapping[str, np.ndarray | None],
    *,
    source: Path | str = "gone",
    per_shard: int = 2,
    names: Mapping[str, Sequence[str | None]] = MappingProxyType({}),
    vocabulary: Sequence[str] = (),
) -> None:
    """Write OUT of a run over image files.

    Args:
        out: OUT.
        labels: Label map of each key, uint16 [H, W]; None for a failed row.
        source: SRC.
        per_shard: The mean number of rows in a label shard.
        names: Names of segments 0, 1, … by key; None for a segment without a name.
        vocabulary: The names of the run.
    """
    storage = Storage(url=str(out))
    groups = shards_of_keys(labels, per_shard)
    inputs = inputs_in(source, per_shard)
    for shard, group in groups.items():
        rows = [_row(shard, index, key, labels[key], names.get(key), vocabulary) for index, key in enumerate(group)]
        with LabelShardWriter(
            shard, formats=("parquet",), metadata={"tag": tag_of(FINGERPRINT, inputs.get(shard, ""))}
        ) as writer:
            for row in rows:
                writer.add(row)
            files = writer.publish(storage)
        ok_rows = sum(row.status == "ok" for row in rows)
        counts = {"ok": ok_rows, "undecodable": len(rows) - ok_rows}
        commit = Commit(
            shard=shard,
            state="done",
            fingerprint=FINGERPRINT,
            attempt=1,
            inputs=inputs.get(shard, ""),
            rows=len(rows),
            counts=counts,
            files=files,
        )
        write_commit(storage, commit)
    naming = NameSettings(names=tuple(vocabulary))
    settings = LabelSettings(samples_per_shard=per_shard, naming=naming).plain()
    manifest = Manifest(
        source=str(source),
        settings=settings,
        model_sha256="",
        resolved={},
        environment={},
        fingerprint=FINGERPRINT,
        shards=len(groups),
    )
    write_manifest(storage, manifest)


def shards_of_keys(keys: Iterable[str], per_shard: int) -> dict[str, tuple[str, ...]]:
    """Return the keys of each shard of a run over image files with these keys."""
    files = [ListedFile(key, 0, "") for key in sorted(keys)]
    return {shard.name: shard.files for shard in group_images("", files, per_shard)}


def inputs_in(source: Path | str, per_shard: int) -> dict[str, str]:
    """Return the digest of the inputs of each shard of SRC, by name; empty if SRC is missing."""
    if not Path(source).exists():
        return {}
    return {shard.name: shard.digest() for shard in find_shards(str(source), samples_per_shard=per_shard)}


def _row(
    shard: str,
    index: int,
    key: str,
    labels: np.ndarray | None,
    names: Sequence[str | None] | None,
    vocabulary: Sequence[str],
) -> Row:
    if labels is None:
        return Row(key=key, shard=shard, index=index, status="undecodable", error="planted failure")
    result = Segmentation(
        labels=labels,
        segments=tuple(
            Segment(
                id=int(k),
                area=int((labels == k).sum()),
                bbox=_box(labels == k),
                confidence=1.0,
                name=None if names is None else names[k],
                name_score=None if names is None else 0.75,
            )
            for k in np.unique(labels[labels != IGNORE])
        ),
        confidence=1.0,
    )
    return labelled_row(Sample(index=index, key=key, image=None), shard, result, vocabulary)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    top, left = int(rows.min()), int(columns.min())
    return left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG of uint8 or uint16 [H, W] or of uint8 [H, W, 3], and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
