"""Reads the rows of a run back from its label shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bounded_json import InvalidFile
from pipeline.output.commit import LabelShard
from pipeline.output.levels import RunCut
from pipeline.output.rows import schema_of
from pipeline.output.schemas import parse_object
from pipeline.output.selection import RowSelection
from pipeline.output.writer import METADATA_KEY, output_paths
from pipeline.storage import SourceError, Storage

BATCH_ROWS = 256
_REPAIR = "To repair it, run `diffseg verify --redo` and then the same `diffseg label`"
UNCERTAIN = "uncertain"
"""Name that pages and pictures show for a segment that `is_uncertain`."""


def label_rows(
    out: Storage, shard: LabelShard, columns: Sequence[str], cut: RunCut | None = None
) -> Iterator[dict[str, Any]]:
    """Yield these columns of a label shard, row by row.

    Args:
        out: OUT of the run.
        shard: The label shard.
        columns: Names of columns.
        cut: Another level of the run's label maps, at which rows are to be cut again.

    Raises:
        SourceError: The file is damaged, or a worker of another run has written it after the commit record.
    """
    if cut is not None:
        yield from cut.rows(label_rows(out, shard, cut.columns(columns)), columns)
        return
    path = output_paths(shard, ("parquet",))["parquet"]
    schema = schema_of(levels=True, features=True, quality=True, generated=True)
    with out.open(path) as file:
        try:
            parquet = pq.ParquetFile(file)
            if label_metadata(parquet.schema_arrow).get("tag") != shard.tag:
                raise SourceError(
                    f"{out.joined(path)}: does not belong to the commit record of its shard, because another run wrote "
                    f"it later. {_REPAIR}"
                )
            for name in columns:
                if parquet.schema_arrow.get_field_index(name) < 0 or (
                    parquet.schema_arrow.field(name).type != schema.field(name).type
                ):
                    expected = schema.field(name).type
                    raise SourceError(f"{out.joined(path)}: has no column {name} of type {expected}. {_REPAIR}")
            for batch in parquet.iter_batches(BATCH_ROWS, columns=list(columns)):
                yield from batch.to_pylist()
        except pa.ArrowException as error:
            raise SourceError(f"{out.joined(path)}: cannot be read as Parquet ({error}). {_REPAIR}") from error


def selected_keys(
    out: Storage, shard: LabelShard, selection: RowSelection, cut: RunCut | None = None
) -> dict[int, str]:
    """Return the key of each selected row with a label map, by the index of its sample in the source shard."""
    rows = label_rows(out, shard, sorted({"key", "index", "status", *selection.columns}), cut)
    return {row["index"]: row["key"] for row in rows if row["status"] == "ok" and selection.accepts(row)}


def label_metadata(schema: pa.Schema) -> Mapping[str, Any]:
    """Return what the writer noted in the footer of a label shard; empty if another program wrote the file."""
    try:
        return parse_object((schema.metadata or {}).get(METADATA_KEY.encode(), b"{}"))
    except InvalidFile:
        return {}


def is_uncertain(segment: Mapping[str, Any]) -> bool:
    """Return True if a row's segment has no name because its best score lies between the two thresholds.

    Such a segment is to be ignored.
    """
    return segment["name"] is None and segment["name_score"] is not None


def segment_name(segment: Mapping[str, Any]) -> str | None:
    """Return the name to show for a row's segment; None in a run without names."""
    return UNCERTAIN if is_uncertain(segment) else segment["name"]
