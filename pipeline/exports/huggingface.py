"""Hugging Face: Parquet files with Image features, and the card that `datasets.load_dataset` reads."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.exports.assemble import Fragments, Lines
from pipeline.exports.items import Export, Item, Part, Tally
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


def write_part(export: Export, part: Part, items: Iterable[Item], tally: Tally) -> Lines:
    """One Parquet file, if there is a row for it."""
    with tempfile.TemporaryDirectory(prefix="diffseg-export-") as folder:
        local = os.path.join(folder, "part.parquet")
        written = 0
        with pq.ParquetWriter(local, SCHEMA, compression="zstd") as writer:
            for rows in _batches(items):
                writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                written += len(rows)
        if written:
            export.dest.write_file(f"data/train-{part.number:05d}-of-{part.parts:05d}.parquet", local)
    tally.counts["exported"] += written
    return {}


def files(export: Export, fragments: Fragments) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The card."""
    yield "README.md", iter([CARD.encode()])


def _batches(items: Iterable[Item]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for item in items:
        rows.append(_row(item))
        if len(rows) == ROW_GROUP_ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


def _row(item: Item) -> dict[str, Any]:
    return {
        "image": {"bytes": item.photograph, "path": item.file},
        "label": {"bytes": encode_mask(item.labels), "path": f"{item.name}.png"},
        "key": item.key,
        "confidence": item.confidence,
        "segments": [
            {
                "id": segment.id,
                "area": segment.area,
                "bbox": segment.bbox,
                "confidence": segment.confidence,
                "category": segment.name,
            }
            for segment in item.segments
        ],
    }
