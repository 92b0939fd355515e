"""The table of `diffseg filter` in OUT: the scores of every labelled row, and whether the row is kept.

    OUT/filter/keep.parquet   the rows; the metadata of its footer names the run, the labels and the settings
    OUT/filter/filter.json    the settings and the counts, for people; no command reads it

The label shards stay as they are. The table holds a digest of the label shards that it was made from, so a table of
other labels is never used.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bounded_json import InvalidFile
from pipeline.digest import short_digest
from pipeline.output.commit import Commit, LabelShard
from pipeline.output.manifest import Manifest
from pipeline.output.records import read_run_commits
from pipeline.output.schemas import parse_object
from pipeline.output.selection import KeptRows
from pipeline.storage import SourceError, Storage

FOLDER = "filter"
TABLE, REPORT = f"{FOLDER}/keep.parquet", f"{FOLDER}/filter.json"
_METADATA = b"diffseg"

SCORE_FIELDS = (
    pa.field("key", pa.string()),
    pa.field("shard", pa.string()),
    pa.field("index", pa.int32()),
    pa.field("class", pa.string()),
    pa.field("agree_iou", pa.float32()),
    pa.field("cv_iou", pa.float32()),
    pa.field("confidence", pa.float32()),
    pa.field("n_segments", pa.int32()),
)
"""Scores of a row with a label map. docs/filter.md describes every column."""
SCHEMA = pa.schema([*SCORE_FIELDS, pa.field("rank", pa.int32()), pa.field("keep", pa.bool_())])


def labels_digest(commits: Mapping[LabelShard, Commit]) -> str:
    """Return 16 hexadecimal digits for the contents of the done label shards of a run."""
    lines = [f"{shard} {_sha256(commit)}" for shard, commit in sorted(commits.items())]
    return short_digest("\n".join(lines))


def _sha256(commit: Commit) -> list[str]:
    return [file["sha256"] for path, file in sorted(commit.files.items()) if path.endswith(".parquet")]


def table_bytes(table: pa.Table, about: Mapping[str, Any]) -> bytes:
    """Return a Parquet file of a table of scores.

    Args:
        table: The table.
        about: JSON values for the metadata of the file: the run, the labels and the settings that it belongs to.
    """
    buffer = io.BytesIO()
    metadata = {_METADATA: json.dumps(about, sort_keys=True).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
    return buffer.getvalue()


def read_table(out: Storage, path: str, columns: list[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """Return some columns of a table of scores, and `about` of `table_bytes`.

    Args:
        out: OUT.
        path: Path of the table.
        columns: Names of the columns; None for all.

    Raises:
        FileNotFoundError: The file does not exist.
        SourceError: The file is damaged.
    """
    with out.open(path) as file:
        try:
            parquet = pq.ParquetFile(file)
            about = parse_object((parquet.schema_arrow.metadata or {}).get(_METADATA, b""))
            table = parquet.read(columns)
        except (pa.ArrowException, InvalidFile) as error:
            raise SourceError(f"{out.joined(path)}: is damaged ({error}). Run `diffseg filter` again") from error
    return table.replace_schema_metadata(None), about


def read_kept(out: Storage, manifest: Manifest) -> KeptRows:
    """Return the rows of a run that `diffseg filter` kept.

    Raises:
        SourceError: The run was not filtered, or its labels have changed since.
    """
    try:
        table, about = read_table(out, TABLE, ["shard", "index", "keep"])
    except FileNotFoundError:
        raise SourceError(f"{out.redacted}: has no {TABLE}; run `diffseg filter {out.redacted}` first") from None
    if about.get("labels") != labels_digest(read_run_commits(out, manifest).done):
        raise SourceError(
            f"{out.joined(TABLE)}: belongs to other labels, because label shards were added, removed or labelled again "
            f"since. Run `diffseg filter {out.redacted}` again"
        )
    return kept_rows(table)


def kept_rows(table: pa.Table) -> KeptRows:
    """Return the rows that a table keeps."""
    rows: dict[str, list[int]] = defaultdict(list)
    kept = table.filter(table["keep"])
    for shard, index in zip(kept["shard"].to_pylist(), kept["index"].to_pylist(), strict=True):
        rows[shard].append(index)
    flags = {}
    for shard, indices in sorted(rows.items()):
        values = np.zeros(max(indices) + 1, np.uint8)
        values[indices] = 1
        flags[shard] = values.tobytes()
    return KeptRows(digest=short_digest("\n".join(f"{shard} {flags[shard].hex()}" for shard in flags)), flags=flags)
