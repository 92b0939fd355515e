"""Hugging Face: Parquet files with Image features, and the dataset card that `datasets.load_dataset` reads."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.exports.assemble import Fragments, LineLists, Lines
from pipeline.exports.card import SPLITS, dataset_card
from pipeline.exports.items import Export, ExportTask, LabelledImage
from pipeline.exports.semantic import class_map_png, id2label
from pipeline.exports.tally import Part, Tally
from pipeline.output.rows import encode_mask
from pipeline.readers.file_names import stem_of

ROW_GROUP_ROWS = 64

_TEXT, _FLOAT = {"dtype": "string", "_type": "Value"}, {"dtype": "float32", "_type": "Value"}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SEGMENT = pa.struct(
    [
        ("id", pa.int32()),
        ("area", pa.int64()),
        ("bbox", pa.list_(pa.int32())),
        ("confidence", pa.float32()),
        ("category", pa.string()),
    ]
)
_SEGMENT_FEATURES = {
    "id": {"dtype": "int32", "_type": "Value"},
    "area": {"dtype": "int64", "_type": "Value"},
    "bbox": {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"},
    "confidence": _FLOAT,
    "category": _TEXT,
}
COLUMNS = {
    "image": (IMAGE, {"_type": "Image"}),
    "label": (IMAGE, {"_type": "Image"}),
    "instances": (IMAGE, {"_type": "Image"}),
    "key": (pa.string(), _TEXT),
    "stem": (pa.string(), _TEXT),
    "confidence": (pa.float32(), _FLOAT),
    "segments": (pa.list_(SEGMENT), {"feature": _SEGMENT_FEATURES, "_type": "List"}),
}
"""Arrow type and feature of each column; only runs with names have `instances`."""


def write_shard(export: Export, task: ExportTask, images: Iterable[LabelledImage], tally: Tally) -> Lines:
    """Write a Parquet file for each part with an image of the label shard, and return lines of the images by part."""
    lines = LineLists()
    with tempfile.TemporaryDirectory(prefix="diffseg-export-") as folder, ExitStack() as stack:
        writers: dict[Part, pq.ParquetWriter] = {}
        for part, rows in _batches(export, images):
            if part not in writers:
                local = os.path.join(folder, part)
                writers[part] = stack.enter_context(pq.ParquetWriter(local, _schema(export), compression="zstd"))
            writers[part].write_table(pa.Table.from_pylist(rows, schema=_schema(export)))
            for _ in rows:
                lines.add(part, "")
            tally.counts["exported"] += len(rows)
        stack.close()
        for part in writers:
            # The fingerprint keeps the files of several runs apart, so that one data set can hold them all.
            name = f"{SPLITS[part]}-{export.manifest.fingerprint}-{task.number:05d}-of-{task.tasks:05d}.parquet"
            export.dest.write_file(f"data/{name}", os.path.join(folder, part))
    return lines.lines()


def files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield path and contents of the dataset card, and of id2label.json for a run with names."""
    images = {part: sum(1 for _ in fragments.lines(part)) for part in export.parts}
    yield "README.md", iter([dataset_card(export, images).encode()])
    if export.is_named:
        yield "id2label.json", iter([id2label(export)])


def _schema(export: Export) -> pa.Schema:
    columns = {name: value for name, value in COLUMNS.items() if export.is_named or name != "instances"}
    features = {name: feature for name, (_, feature) in columns.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([(name, kind) for name, (kind, _) in columns.items()]).with_metadata(metadata)


def _batches(export: Export, images: Iterable[LabelledImage]) -> Iterator[tuple[Part, list[dict[str, Any]]]]:
    rows: dict[Part, list[dict[str, Any]]] = {part: [] for part in export.parts}
    for image in images:
        rows[image.part].append(_row(export, image))
        if len(rows[image.part]) == ROW_GROUP_ROWS:
            yield image.part, rows[image.part]
            rows[image.part] = []
    yield from ((part, left) for part, left in rows.items() if left)


def _row(export: Export, image: LabelledImage) -> dict[str, Any]:
    path = f"{image.name}.png"
    instances = {"bytes": encode_mask(image.labels), "path": path}
    if export.is_named:
        labels = {"label": {"bytes": class_map_png(export, image), "path": path}, "instances": instances}
    else:
        labels = {"label": instances}
    return labels | {
        "image": {"bytes": image.source_image, "path": image.file},
        "key": image.key,
        "stem": stem_of(image.key),
        "confidence": image.confidence,
        "segments": [
            {
                "id": segment.id,
                "area": segment.area,
                "bbox": segment.bbox,
                "confidence": segment.confidence,
                "category": segment.name,
            }
            for segment in image.segments
        ],
    }
