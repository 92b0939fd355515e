"""Hugging Face: Parquet files with Image features, and the dataset card that `datasets.load_dataset` reads."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.exports.assemble import Fragments, Lines
from pipeline.exports.items import Export, ExportTask, LabelledImage, Tally
from pipeline.output.rows import encode_mask

ROW_GROUP_ROWS = 64

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
    "confidence": {"dtype": "float32", "_type": "Value"},
    "category": {"dtype": "string", "_type": "Value"},
}
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "Image"},
    "key": {"dtype": "string", "_type": "Value"},
    "confidence": {"dtype": "float32", "_type": "Value"},
    "segments": {"feature": _SEGMENT_FEATURES, "_type": "List"},
}
SCHEMA = pa.schema(
    [
        ("image", IMAGE),
        ("label", IMAGE),
        ("key", pa.string()),
        ("confidence", pa.float32()),
        ("segments", pa.list_(SEGMENT)),
    ]
).with_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
Segmentation labels made by diffseg. `label` is a PNG of segment ids of the size of `image`; where no segment is, it has
the largest value of its type: 255 in 8 bit, 65535 in 16 bit. `segments` tells the area, box (x, y, width, height),
confidence and category of each id.
"""


def write_shard(export: Export, task: ExportTask, images: Iterable[LabelledImage], tally: Tally) -> Lines:
    """Write one Parquet file, unless the label shard has no image to export."""
    with tempfile.TemporaryDirectory(prefix="diffseg-export-") as folder:
        local = os.path.join(folder, "part.parquet")
        written = 0
        with pq.ParquetWriter(local, SCHEMA, compression="zstd") as writer:
            for rows in _batches(images):
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                written += len(rows)
        if written:
            export.dest.write_file(f"data/train-{task.number:05d}-of-{task.tasks:05d}.parquet", local)
    tally.counts["exported"] += written
    return {}


def files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield path and contents of the dataset card."""
    yield "README.md", iter([CARD.encode()])


def _batches(images: Iterable[LabelledImage]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for image in images:
        rows.append(_row(image))
        if len(rows) == ROW_GROUP_ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


def _row(image: LabelledImage) -> dict[str, Any]:
    return {
        "image": {"bytes": image.source_image, "path": image.file},
        "label": {"bytes": encode_mask(image.labels), "path": f"{image.name}.png"},
        "key": image.key,
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
