"""A guard between Arrow and a Parquet file, which refuses pages that claim far more memory than they have bytes.

Arrow allocates the size that the header of a page declares and then decompresses into it, so a file of a few kilobytes
can make it allocate gigabytes. The footer does not contain these sizes: the page headers are between the pages. The
guard inspects them in the bytes that Arrow reads anyway, and reads more only if a header extends beyond such a block.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow.parquet as pq

from pipeline.readers.thrift import Malformed, read_struct

FREE_BYTES = 2**26
"""Bytes to which the pages that are in memory together may decompress, whatever their size in the file."""

FREE_VALUES = 2**23
"""Values that the lists of a row group may have, whatever their size in the file."""

RATIO = 32
"""Decompressed bytes, or values of lists, that are allowed beyond this for each byte in the file.

Images do not compress.
"""

_HEADER_BYTES = (2**12, 2**16, 2**20, 2**24)
"""Sizes of the reads for a header, which can be long because it contains the smallest and the largest value."""
_UNCOUNTED_BYTES = 100
"""Bytes at the end of a column that old writers left out of its size. Arrow allows the same number."""
_UNCOMPRESSED, _COMPRESSED, _DATA, _DICTIONARY, _DATA_V2 = 2, 3, 5, 7, 8  # fields of Parquet's PageHeader
_NUM_VALUES = 1  # in each of the three inner headers


class DamagedPages(ValueError):
    """The pages of a column are malformed or claim too much memory. The pages before them are intact."""


@dataclass(kw_only=True, slots=True)
class _Chunk:
    """A column of a row group.

    Attributes:
        name: The path of the column in the schema.
        start: The offset of its first byte in the file.
        end: The offset after its last byte.
        next: The offset of the next page header.
        is_list: True if its values are in lists.
        page: The decompressed size and the size in the file of its latest page, in bytes.
    """

    name: str
    start: int
    end: int
    next: int
    is_list: bool
    page: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class _Claim:
    """The memory that pages claim, in bytes or values, and their size in the file in bytes."""

    claimed: int = 0
    stored: int = 0

    def add(self, claimed: int, stored: int) -> None:
        self.claimed += claimed
        self.stored += stored

    def check(self, unit: str, free: int) -> None:
        """Raise `DamagedPages` if the claim exceeds `free` plus `RATIO` for each byte in the file."""
        if self.claimed > free + RATIO * self.stored:
            raise DamagedPages(
                f"pages of {self.stored} bytes claim {self.claimed} {unit}; at most {RATIO} for each byte are believed"
            )


class GuardedFile:
    """A file for `pyarrow.PythonFile`, on top of a file that supports reading and seeking.

    Attributes:
        failure: The error that reading the file raised, which comes from the store and not from the data, or None.
        closed: True after Arrow has closed this file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._chunks: list[_Chunk] = []
        self._bytes, self._values = _Claim(), _Claim()
        self.failure: Exception | None = None
        self.closed = False

    def close(self) -> None:
        """Mark this file as closed. The file below stays open."""
        self.closed = True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to an offset, like the method of a file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the offset, like the method of a file."""
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        """Read bytes, like the method of a file.

        Raises:
            DamagedPages: A page that starts in these bytes is malformed or claims too much memory.
        """
        start = self._file.tell()
        data = self._read(size)
        if self._chunks:
            self._inspect(start, data)
            self._file.seek(start + len(data))
        return data

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:
            self.failure = error
            raise

    def watch(self, metadata: pq.FileMetaData, group: int, names: Sequence[str]) -> int:
        """Guard some columns of a row group from now on, instead of those of the previous call.

        Args:
            metadata: The metadata of the file.
            group: The number of the row group.
            names: The columns.

        Returns:
            The decompressed size that the footer declares for these columns, in bytes.

        Raises:
            DamagedPages: The footer places a column before the start of the file, or two columns at the same place.
        """
        wanted = set(names)
        row_group = metadata.row_group(group)
        self._chunks, declared = [], 0
        # Bytes of the dictionaries and of the latest page of each column; values of all lists.
        self._bytes, self._values = _Claim(), _Claim()
        for place in range(row_group.num_columns):
            column = row_group.column(place)
            if column.path_in_schema.split(".")[0] not in wanted and column.path_in_schema not in wanted:
                continue
            start = column.data_page_offset
            if column.has_dictionary_page and 0 < (column.dictionary_page_offset or 0) < start:
                start = column.dictionary_page_offset
            end = start + column.total_compressed_size
            if start < 0 or end < start:
                raise DamagedPages(f"the column {column.path_in_schema!r} is said to lie at {start} to {end}")
            is_list = metadata.schema.column(place).max_repetition_level > 0
            self._chunks.append(_Chunk(name=column.path_in_schema, start=start, end=end, next=start, is_list=is_list))
            declared += max(column.total_uncompressed_size, 0)
        self._chunks.sort(key=lambda chunk: chunk.start)
        for before, after in zip(self._chunks, self._chunks[1:], strict=False):
            if after.start < before.end:
                raise DamagedPages(f"the columns {before.name!r} and {after.name!r} overlap in the file")
        return declared

    def _inspect(self, start: int, data: bytes) -> None:
        """Check the headers of all pages that start in the bytes at `start`."""
        place = bisect_right(self._chunks, start, key=lambda chunk: chunk.start) - 1
        for chunk in self._chunks[max(place, 0) :]:
            if chunk.start >= start + len(data):
                return
            while chunk.next < min(start + len(data), chunk.end):
                self._check_page(chunk, start, data)

    def _check_page(self, chunk: _Chunk, start: int, data: bytes) -> None:
        """Check the next page of a column and move to the one after it."""
        header, length = self._header(chunk, start, data)
        unpacked, packed = header.get(_UNCOMPRESSED), header.get(_COMPRESSED)
        if not isinstance(unpacked, int) or not isinstance(packed, int) or unpacked < 0 or packed < 0:
            raise DamagedPages(f"a page of the column {chunk.name!r} has a size of {packed} bytes, {unpacked} unpacked")
        chunk.next += length + packed
        # Otherwise a page could claim more bytes in the file, by which its claim on memory is measured.
        if chunk.next > chunk.end + _UNCOUNTED_BYTES:
            raise DamagedPages(f"a page of the column {chunk.name!r} goes on {chunk.next - chunk.end} bytes behind it")
        if _DICTIONARY in header:
            self._bytes.add(unpacked, packed)
        else:
            self._bytes.add(unpacked - chunk.page[0], packed - chunk.page[1])
            chunk.page = (unpacked, packed)
            inner = header.get(_DATA) or header.get(_DATA_V2) or {}
            self._values.add(inner.get(_NUM_VALUES, 0) if chunk.is_list else 0, packed)
        self._bytes.check("bytes", FREE_BYTES)
        self._values.check("values", FREE_VALUES)

    def _header(self, chunk: _Chunk, start: int, data: bytes) -> tuple[dict[int, Any], int]:
        """Return the next page header of a column and its length, from the bytes just read or else from the file."""
        inside = chunk.next - start
        if 0 <= inside < len(data):
            try:
                return read_struct(data, inside)
            except Malformed:
                pass  # the header may only extend beyond these bytes
        for size in _HEADER_BYTES:
            self._file.seek(chunk.next)
            block = self._read(min(size, chunk.end - chunk.next))
            try:
                return read_struct(block, 0)
            except Malformed as error:
                if len(block) < size:
                    raise DamagedPages(f"a page header of the column {chunk.name!r} is broken: {error}") from error
        raise DamagedPages(f"a page header of the column {chunk.name!r} is longer than {_HEADER_BYTES[-1]} bytes")
