"""Check that the keys of a Parquet file tell its rows apart, before its images are read.

Columns such as `id` or `url` often hold a class or an address that many rows share. Such rows would be duplicates
without a label map, so their keys are the paths of the images then, or the numbers of the rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.readers.parquet_columns import Columns
from pipeline.readers.parquet_guard import DamagedPages, GuardedFile
from pipeline.readers.parquet_values import value_of
from pipeline.readers.samples import FirstSeen

_BATCH_ROWS = 1024
_BUFFER_BYTES = 2**18


def with_unique_keys(
    columns: Columns, metadata: pq.FileMetaData, file: IO[bytes], on_note: Callable[[str], None]
) -> Columns:
    """Return the columns with a source of keys that differ from row to row.

    Args:
        columns: The columns, with the key column that was chosen by its name.
        metadata: The metadata of the file.
        file: The file, opened a second time, with small blocks if it is remote: each row group is read for its keys.
        on_note: Called with a sentence for the summary if the chosen keys are not used.
    """
    guard = GuardedFile(file)
    parquet = pq.ParquetFile(guard, metadata=metadata, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    note = ""
    if columns.key is not None:
        repeated = _first_repeated(parquet, guard, columns.key)
        if repeated is None:
            return columns
        note = f"the column {columns.key!r} does not tell rows apart (row {repeated[1]} repeats row {repeated[0]})"
        columns = dataclasses.replace(columns, key=None, meta=(*columns.meta, columns.key))
    path = f"{columns.image}.path"
    has_paths = any(metadata.schema.column(place).path == path for place in range(metadata.num_columns))
    if has_paths and (repeated := _first_repeated(parquet, guard, path)) is not None:
        also = f"the paths of the images do not tell rows apart (row {repeated[1]} repeats row {repeated[0]})"
        note = f"{note}, and {also}" if note else also
        columns = dataclasses.replace(columns, use_paths=False)
    if note:
        keys = "paths of the images" if has_paths and columns.use_paths else "numbers of the rows"
        on_note(f"{note}, so the keys are the {keys}")
    return columns


def _first_repeated(parquet: pq.ParquetFile, guard: GuardedFile, name: str) -> tuple[int, int] | None:
    """Return two rows with the same key, or None. Rows without a key do not count, nor do damaged parts of the file."""
    first_seen = FirstSeen()
    index = 0
    try:
        for group in range(parquet.num_row_groups):
            guard.watch(parquet.metadata, group, (name,))
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[name], use_threads=False):
                for row in range(batch.num_rows):
                    key = _text(batch.column(0)[row])
                    if key is not None and (first := first_seen(key, index)) != index:
                        return first, index
                    index += 1
    except (pa.ArrowException, DamagedPages, OSError, ValueError, MemoryError, IndexError):
        if guard.failure:
            raise guard.failure from None
    return None


def _text(scalar: pa.Scalar) -> str | None:
    """Return the key in a value of a key column, or of an image column of which only the path was read."""
    if pa.types.is_struct(scalar.type):
        if not scalar.is_valid:
            return None
        scalar = scalar["path"]
    return key_text(scalar)


def key_text(scalar: pa.Scalar) -> str | None:
    """Return a value as a key, or None if it is null or empty."""
    key = value_of(scalar)
    if isinstance(key, bytes):
        key = key.decode("utf-8", "backslashreplace")
    return None if key is None or key == "" else str(key)
