"""The rows of a run, read back from its label shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.writer import output_paths
from pipeline.storage import SourceError, Storage

ROWS_AT_ONCE = 256
UNCERTAIN = "uncertain"
"""What a page or a picture calls a segment that `is_uncertain`."""


def label_rows(out: Storage, shard: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """These columns of a label shard, row by row. Raises SourceError where the file is damaged."""
    path = output_paths(shard, ("parquet",))["parquet"]
    with out.open(path) as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE, columns=list(columns)):
                yield from batch.to_pylist()
        except pa.ArrowException as error:
            raise SourceError(
                f"{out.joined(path)}: cannot be read as Parquet ({error}). `diffseg verify --redo`, then the same "
                "`diffseg label`, mends it"
            ) from error


def is_uncertain(segment: Mapping[str, Any]) -> bool:
    """Whether a row's segment has no name since its best one is between the two thresholds: it is to be ignored."""
    return segment["name"] is None and segment["name_score"] is not None


def segment_name(segment: Mapping[str, Any]) -> str | None:
    """What a row's segment is called; None in a run without names."""
    return UNCERTAIN if is_uncertain(segment) else segment["name"]
