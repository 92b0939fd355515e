"""The rows of a run, read back from its label shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq

from pipeline.outputs import output_paths
from pipeline.storage import Storage

ROWS_AT_ONCE = 256


def label_rows(out: Storage, shard: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """These columns of a label shard, row by row."""
    with out.open(output_paths(shard, ("parquet",))["parquet"]) as file:
        for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE, columns=list(columns)):
            yield from batch.to_pylist()
