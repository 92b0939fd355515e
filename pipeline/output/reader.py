"""Reads the rows of a run back from its label shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.writer import output_paths
from pipeline.storage import SourceError, Storage

BATCH_ROWS = 256
UNCERTAIN = "uncertain"
"""Name that pages and pictures show for a segment that `is_uncertain`."""


def label_rows(out: Storage, shard: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield these columns of a label shard, row by row. Raises SourceError if the file is damaged."""
    path = output_paths(shard, ("parquet",))["parquet"]
    with out.open(path) as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=list(columns)):
                yield from batch.to_pylist()
        except pa.ArrowException as error:
            raise SourceError(
                f"{out.joined(path)}: cannot be read as Parquet ({error}). To repair it, run `diffseg verify --redo` "
                "and then the same `diffseg label`"
            ) from error


def is_uncertain(segment: Mapping[str, Any]) -> bool:
    """Return True if a row's segment has no name because its best score lies between the two thresholds.

    Such a segment is to be ignored.
    """
    return segment["name"] is None and segment["name_score"] is not None


def segment_name(segment: Mapping[str, Any]) -> str | None:
    """Return the name to show for a row's segment; None in a run without names."""
    return UNCERTAIN if is_uncertain(segment) else segment["name"]
