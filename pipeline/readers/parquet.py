"""Read the samples of a Parquet file whose images are plain bytes or `{bytes, path}` structs of Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.readers.parquet_columns import Columns, choose_columns
from pipeline.readers.parquet_guard import DamagedPages, GuardedFile
from pipeline.readers.parquet_keys import key_text, with_unique_keys
from pipeline.readers.parquet_values import image_of, json_of, value_of
from pipeline.readers.samples import (
    DEFAULT_LIMITS,
    FirstSeen,
    ReadLimits,
    Sample,
    ShardError,
    bounded_key,
    meta_text,
    shorten,
)

_BATCH_ROWS = 16
_BATCH_BYTES = 2**26
_BUFFER_BYTES = 2**20
_FREE_ROWS = 2**20
"""Rows that a file may declare in addition to one for each of its bytes."""

_DAMAGE = (pa.ArrowException, DamagedPages, OSError, ValueError, MemoryError, IndexError)
"""What Arrow raises for a damaged file. An OSError can also come from the store; the guard knows whether it does."""


def read_parquet(
    file: IO[bytes],
    url: str,
    image_field: str | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
    *,
    key_field: str | None = None,
    key_file: IO[bytes] | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Iterator[Sample]:
    """Stream the rows of a Parquet file. A few rows at a time are in memory.

    The key of a row is the value of `key_field`, or else of the first of `KEY_COLUMNS` that exists, or else the path in
    the image struct, or else the number of the row. Keys that do not tell the rows apart are not used (see
    `pipeline.readers.parquet_keys`). The other columns without binary values become the meta. In a damaged row group,
    the rows before the damage are read, and each row after it gets the status `damaged`; later row groups are read.

    Args:
        file: Opened for binary reading; it must support seeking.
        url: The URL of the file, for messages.
        image_field: The image column. Without it, the first of `IMAGE_COLUMNS` or the only binary column is used.
        limits: The size limits of a sample.
        key_field: The key column.
        key_file: The same file opened a second time, for reading the keys; None stands for `file`.
        on_note: Called with a sentence for the summary of a run.

    Raises:
        ShardError: The file is not Parquet, has no recognisable image column, or has no readable row.
    """
    guard = GuardedFile(file)
    try:
        # With a small buffer, since a row group of images can be larger than the memory.
        parquet = pq.ParquetFile(guard, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
        columns = choose_columns(parquet.schema_arrow, url, image_field, key_field)
        _check_row_count(parquet.metadata, file, url)
        columns = with_unique_keys(columns, parquet.metadata, key_file or file, on_note)
    except ShardError:
        raise
    except _DAMAGE as error:
        raise _failure(guard, url, error) from error
    reader = _RowReader(parquet, guard, columns, limits)
    for group in range(parquet.num_row_groups):
        try:
            yield from reader.read_group(group)
        except _UnreadableGroup as error:
            if parquet.num_row_groups == 1:
                raise ShardError(url, f"cannot be read as Parquet: {error}") from error
            yield from reader.damaged_rows(group, 0, str(error))


def _failure(guard: GuardedFile, url: str, error: Exception) -> Exception:
    """Return the error to raise: that of the store if it failed, or else that the file is not Parquet."""
    return guard.failure or ShardError(url, f"cannot be read as Parquet: {error or type(error).__name__}")


def _check_row_count(metadata: pq.FileMetaData, file: IO[bytes], url: str) -> None:
    declared = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    size = file.seek(0, os.SEEK_END)
    if min(declared, default=0) < 0 or sum(declared) > _FREE_ROWS + size:
        raise ShardError(url, f"a file of {size} bytes declares {sum(declared)} rows")


class _UnreadableGroup(Exception):
    """Not a single row of a row group can be read."""


class _RowReader:
    """Reads a file by row groups, in order; numbers the rows and remembers their keys."""

    def __init__(self, parquet: pq.ParquetFile, guard: GuardedFile, columns: Columns, limits: ReadLimits) -> None:
        self._parquet = parquet
        self._guard = guard
        self._columns = columns
        self._limits = limits
        self._first_seen = FirstSeen()
        self._index = 0

    def read_group(self, group: int) -> Iterator[Sample]:
        """Yield the samples of a row group, with the status `damaged` for the rows after damage.

        Raises:
            _UnreadableGroup: The damage is before the end of the first row.
        """
        done = 0
        try:
            for batch in self._batches(group, self._columns.all):
                for row in range(batch.num_rows):
                    yield self._sample(batch, row)
                    done += 1
        except _DAMAGE as error:
            if self._guard.failure:
                raise self._guard.failure from None
            damage = shorten(str(error) or type(error).__name__, 500)
            if not done:
                raise _UnreadableGroup(damage) from error
            yield from self.damaged_rows(group, done, damage)
            return
        row_group = self._parquet.metadata.row_group(group)
        if done < row_group.num_rows:
            damage = f"it declares {row_group.num_rows} rows"
            if row_group.num_rows in {row_group.column(place).num_values for place in range(row_group.num_columns)}:
                yield from self.damaged_rows(group, done, damage)
            else:  # only the row group declares this number, so the number may itself be the damage
                yield self._failed_row("", "truncated", f"row group {group} ends after {done} rows: {damage}")

    def damaged_rows(self, group: int, done: int, damage: str) -> Iterator[Sample]:
        """Yield the rows of a damaged row group after the first `done`, with their keys where these are readable."""
        declared = self._parquet.metadata.row_group(group).num_rows
        error = f"row group {group} cannot be read beyond its first {done} rows: {damage}"
        keys = self._keys(group)
        for row in range(declared):
            key = next(keys, None)
            if row >= done:
                bounded, _ = bounded_key(key or f"{self._index:08d}", self._limits)
                yield self._failed_row(bounded, "damaged", error)

    def _failed_row(self, key: str, status: str, error: str) -> Sample:
        index = self._index
        self._index += 1
        if key and (first := self._first_seen(key, index)) != index:
            status, error = "duplicate_key", f"row {first} of this shard has the key {key!r} already; {error}"
        return Sample(index=index, key=key, image=None, status=status, error=shorten(error))

    def _keys(self, group: int) -> Iterator[str | None]:
        """Yield the keys of a row group up to the first damage."""
        if self._columns.key is None:
            return
        try:
            for batch in self._batches(group, (self._columns.key,)):
                for row in range(batch.num_rows):
                    yield _key(batch, row, self._columns)
        except _DAMAGE:
            if self._guard.failure:
                raise self._guard.failure from None

    def _batches(self, group: int, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
        declared = self._guard.watch(self._parquet.metadata, group, names)
        # A dictionary entry can be the value of every row, so a batch can be larger than all of its input.
        rows = min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(declared, 1)))
        return self._parquet.iter_batches(rows, row_groups=[group], columns=list(names), use_threads=False)

    def _sample(self, batch: pa.RecordBatch, row: int) -> Sample:
        index, columns = self._index, self._columns
        self._index += 1
        image, path = image_of(batch.column(columns.image)[row], self._limits)
        stored_key = _key(batch, row, columns) if columns.key else path if columns.use_paths else None
        key, key_error = bounded_key(stored_key or f"{index:08d}", self._limits)
        first = self._first_seen(key, index)
        status, error = "ok", ""
        if first != index:
            status, error = "duplicate_key", f"row {first} of this shard has the key {key!r} already"
        elif key_error:
            status, error = "too_large", key_error
        elif image is None:
            status, error = "no_image", f"the column {columns.image!r} is null in row {index}"
            if path is not None:
                error = f"row {index} holds only the path {path!r} and no bytes; embed the images in the Parquet file"
        elif isinstance(image, int):
            limit = self._limits.max_sample_bytes
            status, error = "too_large", f"the image has {image} bytes; at most {limit} are read"
        return Sample(
            index=index,
            key=key,
            image=image if status == "ok" and isinstance(image, bytes) else None,
            meta=_meta(batch, row, columns, self._limits),
            status=status,
            error=shorten(error),
        )


def _key(batch: pa.RecordBatch, row: int, columns: Columns) -> str | None:
    return key_text(batch.column(columns.key)[row])


def _meta(batch: pa.RecordBatch, row: int, columns: Columns, limits: ReadLimits) -> str:
    # In Arrow a JSON value takes at most eight times the bytes of its text. The size is checked before the values are
    # converted to Python objects, which are larger still, and for single rows only where the whole batch is too large.
    max_bytes = 8 * limits.max_meta_bytes
    if batch.nbytes > max_bytes:
        size = sum(batch.column(name).slice(row, 1).nbytes for name in columns.meta)
        if size > max_bytes:
            return meta_text({}, size, limits)
    return meta_text({name: json_of(value_of(batch.column(name)[row])) for name in columns.meta}, limits=limits)
