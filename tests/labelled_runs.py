"""Runs with given label maps: everything in OUT is real except that no model made the labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from diffseg import IGNORE, Segmentation
from diffseg.levels import cell_centres, cell_size
from diffseg.segmentation import Levels, Segment
from pipeline.output.commit import Commit, tag_of, write_commit
from pipeline.output.manifest import Manifest, write_manifest
from pipeline.output.rows import Row, labelled_row, level_values
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
    levels: bool = False,
    images: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write OUT of a run over image files, or of a run that generated its images.

    Args:
        out: OUT.
        labels: Label map of each key, uint16 [H, W]; None for a failed row.
        source: SRC.
        per_shard: The mean number of rows in a label shard.
        names: Names of segments 0, 1, … by key; None for a segment without a name.
        vocabulary: The names of the run.
        levels: Whether the rows have the levels of `halves`, for a run at tau 0.4.
        images: The encoded image of each key, for a run that generated its images.
    """
    storage = Storage(url=str(out))
    groups = shards_of_keys(labels, per_shard)
    inputs = inputs_in(source, per_shard)
    for shard, group in groups.items():
        rows = [_row(shard, index, key, labels[key], names.get(key), vocabulary) for index, key in enumerate(group)]
        if levels:
            rows = [row if row.mask is None else replace(row, **level_values(halves(labels[row.key]))) for row in rows]
        if images:
            rows = [_generated(row, images[row.key], vocabulary) for row in rows]
        metadata = {"tag": tag_of(FINGERPRINT, inputs.get(shard, ""))}
        further = {"levels": levels, "generated": bool(images)}
        with LabelShardWriter(shard, formats=("parquet",), metadata=metadata, **further) as writer:
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
    settings = LabelSettings(samples_per_shard=per_shard, naming=naming, levels=levels).plain()
    if images:
        settings |= {"image_field": "image", "key_field": "key", "include_image": True, "generation": {}}
    manifest = Manifest(
        source=str(source),
        settings=settings,
        model_sha256="",
        resolved={"tau": [0.4, 0.4, 0.4]} if levels else {},
        environment={},
        fingerprint=FINGERPRINT,
        shards=len(groups),
    )
    write_manifest(storage, manifest)


def halves(labels: np.ndarray | None) -> Levels:
    """Return levels in which each segment has a leaf of its own in the left half and one in the right half.

    The halves merge at equal steps below 0.4, and the segments from left to right at 1, 2, ….
    """
    assert labels is not None
    count = int(labels[labels != IGNORE].max()) + 1
    cell = cell_size(*labels.shape)
    in_right = np.zeros(labels.shape, bool)
    in_right[:, labels.shape[1] // 2 :] = True
    node, pairs = [2 * segment for segment in range(count)], []
    for segment in range(count):
        pairs.append((2 * segment, 2 * segment + 1))
        node[segment] = 2 * count + segment
    for segment in range(1, count):
        pairs.append((node[0], node[segment]))
        node[0] = 3 * count + segment - 1
    heights = [0.4 * (1 + segment) / (1 + count) for segment in range(count)] + [
        float(segment) for segment in range(1, count)
    ]
    return Levels(
        numbers=cell_centres(in_right, cell).astype(np.uint8),
        segment_of_leaf=np.repeat(np.arange(count, dtype=np.int32), 2),
        leaf_confidences=np.full(2 * count, 0.25, np.float32),
        pairs=np.array(pairs, np.int32).reshape(-1, 2),
        heights=np.array(heights, np.float32),
        confidences=np.full(2 * count - 1, 0.5, np.float32),
    )


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


def _generated(row: Row, image: bytes, vocabulary: Sequence[str]) -> Row:
    """Return the row of a generated image, whose classes are the whole vocabulary."""
    scores = (0.5,) * len(vocabulary)
    return replace(
        row,
        image=image,
        prompt=f"a photo of {vocabulary[0]}",
        generation_seed=row.index,
        steps=2,
        guidance=1.0,
        classes=tuple(vocabulary),
        threshold=scores,
        agree_iou=scores,
    )


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    top, left = int(rows.min()), int(columns.min())
    return left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG of uint8 or uint16 [H, W] or of uint8 [H, W, 3], and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
