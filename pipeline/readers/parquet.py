"""Parquet files with an image column as samples: plain bytes, or the ``{bytes, path}`` structs of Hugging Face."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.readers import samples
from pipeline.readers.parquet_columns import Columns, choose_columns, image_of, json_of, value_of
from pipeline.readers.parquet_guard import DamagedPages, GuardedFile
from pipeline.readers.samples import FirstSeen, Sample, ShardError, bounded_key, meta_text, shorten

_BATCH_ROWS = 16
_BATCH_BYTES = 2**26
_BUFFER_BYTES = 2**20
_FREE_ROWS = 2**20  # a file may declare this many rows, whatever its size

_DAMAGE = (pa.ArrowException, DamagedPages, OSError, ValueError, MemoryError, IndexError)
"""What Arrow raises for a damaged file. OSError among them: the guard knows which ones are the store's."""


def read_parquet(file: IO[bytes], url: str, image_field: str | None = None) -> Iterator[Sample]:
    """Stream the rows of a Parquet file, a few of them in memory at a time.

    The key is the first of ``KEY_COLUMNS`` that is there, else the path in the image struct, else the row's number;
    the other columns without binary values become the meta. Of a row group that is damaged, the rows up to the damage
    come out, and each other one as ``damaged``; the row groups behind it are whole.

    Args:
        file: opened for binary reading; must allow seeking.
        url: for messages.
        image_field: the image column; without it ``IMAGE_COLUMNS`` are looked for, then the only binary one.

    Raises:
        ShardError: when it is no Parquet file, has no image column that could be meant, or no row that can be read.
    """
    guard = GuardedFile(file)
    try:
        # Buffered, since a row group of photographs can be larger than the memory.
        parquet = pq.ParquetFile(guard, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
        columns = choose_columns(parquet.schema_arrow, url, image_field)
        _check_rows(parquet.metadata, file, url)
    except ShardError:
        raise
    except _DAMAGE as error:
        raise _failure(guard, url, error) from error
    reader = _Reader(parquet, guard, columns)
    for group in range(parquet.num_row_groups):
        try:
            yield from reader.group(group)
        except _Unreadable as error:
            if parquet.num_row_groups == 1:
                raise ShardError(url, f"cannot be read as Parquet: {error}") from error
            yield from reader.lost(group, 0, str(error))


def _failure(guard: GuardedFile, url: str, error: Exception) -> Exception:
    """What to raise for ``error``: that of the store where there was one, else that this is no Parquet file."""
    return guard.failure or ShardError(url, f"cannot be read as Parquet: {error or type(error).__name__}")


def _check_rows(metadata: pq.FileMetaData, file: IO[bytes], url: str) -> None:
    declared = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    size = file.seek(0, os.SEEK_END)
    if min(declared, default=0) < 0 or sum(declared) > _FREE_ROWS + size:
        raise ShardError(url, f"a file of {size} bytes declares {sum(declared)} rows")


class _Unreadable(Exception):
    """Not one row of a row group came out."""


class _Reader:
    """The rows of one file, a row group after another; counts them and knows the keys it has seen."""

    def __init__(self, parquet: pq.ParquetFile, guard: GuardedFile, columns: Columns) -> None:
        self._parquet = parquet
        self._guard = guard
        self._columns = columns
        self._first_seen = FirstSeen()
        self._index = 0

    def group(self, group: int) -> Iterator[Sample]:
        """The samples of a row group; those behind damage are ``damaged``. Raises ``_Unreadable`` for all."""
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
                raise _Unreadable(damage) from error
            yield from self.lost(group, done, damage)
            return
        row_group = self._parquet.metadata.row_group(group)
        if done < row_group.num_rows:
            damage = f"it declares {row_group.num_rows} rows"
            if row_group.num_rows in {row_group.column(place).num_values for place in range(row_group.num_columns)}:
                yield from self.lost(group, done, damage)
            else:  # only one number says so, and may itself be the damage
                yield self._failed("", "truncated", f"row group {group} ends after {done} rows: {damage}")

    def lost(self, group: int, done: int, damage: str) -> Iterator[Sample]:
        """The rows of a damaged row group behind the first ``done``, with their keys where these can be read."""
        declared = self._parquet.metadata.row_group(group).num_rows
        error = f"row group {group} cannot be read beyond its first {done} rows: {damage}"
        keys = self._keys(group)
        for row in range(declared):
            key = next(keys, None)
            if row >= done:
                yield self._failed(bounded_key(key or f"{self._index:08d}")[0], "damaged", error)

    def _failed(self, key: str, status: str, error: str) -> Sample:
        index = self._index
        self._index += 1
        if key and (first := self._first_seen(key, index)) != index:
            status, error = "duplicate_key", f"row {first} of this shard has the key {key!r} already; {error}"
        return Sample(index=index, key=key, image=None, status=status, error=shorten(error))

    def _keys(self, group: int) -> Iterator[str | None]:
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
        # One dictionary entry can be the value of every row, so that a batch is larger than all that it comes from.
        rows = min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(declared, 1)))
        return self._parquet.iter_batches(rows, row_groups=[group], columns=list(names), use_threads=False)

    def _sample(self, batch: pa.RecordBatch, row: int) -> Sample:
        index, columns = self._index, self._columns
        self._index += 1
        image, path = image_of(batch.column(columns.image)[row])
        key, too_long = bounded_key((_key(batch, row, columns) if columns.key else path) or f"{index:08d}")
        first = self._first_seen(key, index)
        status, error = "ok", ""
        if first != index:
            status, error = "duplicate_key", f"row {first} of this shard has the key {key!r} already"
        elif too_long:
            status, error = "too_large", too_long
        elif image is None:
            status, error = "no_image", f"the column {columns.image!r} is null in row {index}"
            if path is not None:
                error = f"row {index} holds only the path {path!r} and no bytes; embed the images in the Parquet file"
        elif isinstance(image, int):
            status, error = "too_large", f"the image has {image} bytes; at most {samples.MAX_SAMPLE_BYTES} are read"
        return Sample(
            index=index,
            key=key,
            image=image if status == "ok" and isinstance(image, bytes) else None,
            meta=_meta(batch, row, columns),
            status=status,
            error=shorten(error),
        )


def _key(batch: pa.RecordBatch, row: int, columns: Columns) -> str | None:
    key = value_of(batch.column(columns.key)[row])
    if isinstance(key, bytes):
        key = key.decode("utf-8", "backslashreplace")
    return None if key is None or key == "" else str(key)


def _meta(batch: pa.RecordBatch, row: int, columns: Columns) -> str:
    # In Arrow a value of JSON has at most eight times the bytes of its text. Weighed before Python makes objects of
    # it, which are larger still; usually the whole batch is light.
    limit = 8 * samples.MAX_META_BYTES
    if batch.nbytes > limit:
        size = sum(batch.column(name).slice(row, 1).nbytes for name in columns.meta)
        if size > limit:
            return meta_text({}, size)
    return meta_text({name: json_of(value_of(batch.column(name)[row])) for name in columns.meta})
