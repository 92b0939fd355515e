"""Between Arrow and a Parquet file: refuses pages that claim more memory than their bytes can be worth.

Arrow makes room for what the header of a page declares and then decompresses into it, so that a file of some kilobytes
can ask for gigabytes. Nothing of that is in the footer: page headers lie between the pages. Here they are looked at as
Arrow's reads pass them by, with no further reads but where one straddles a block.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow.parquet as pq

from pipeline.readers.thrift import Malformed, read_struct

FREE_BYTES = 2**26
"""Pages that are in memory together may unpack to this many bytes, whatever they have in the file."""

FREE_VALUES = 2**23
"""Lists of a row group may have this many values, whatever they have in the file."""

RATIO = 32
"""Above the free amount: bytes, or values of lists, for each byte in the file. Images do not compress."""

_HEADER_BYTES = (2**12, 2**16, 2**20, 2**24)  # headers hold the smallest and the largest value, so they may be long
_FORGOTTEN_BYTES = 100  # at the end of a column; Arrow allows as many
_UNCOMPRESSED, _COMPRESSED, _DATA, _DICTIONARY, _DATA_V2 = 2, 3, 5, 7, 8  # fields of Parquet's PageHeader
_NUM_VALUES = 1  # in each of the three inner headers


class DamagedPages(ValueError):
    """The pages of a column are not what they may be. What came before them is good."""


@dataclass(kw_only=True, slots=True)
class _Chunk:
    """One column of one row group: where it lies, where its next page starts, and what of it is in memory."""

    name: str
    start: int
    end: int
    next: int
    is_list: bool
    page: tuple[int, int] = (0, 0)  # (bytes unpacked, bytes in the file) of its latest page


@dataclass(slots=True)
class _Claim:
    """What pages want in memory, and what they have in the file."""

    claimed: int = 0
    stored: int = 0

    def add(self, claimed: int, stored: int) -> None:
        self.claimed += claimed
        self.stored += stored

    def check(self, what: str, free: int) -> None:
        if self.claimed > free + RATIO * self.stored:
            raise DamagedPages(
                f"pages of {self.stored} bytes claim {self.claimed} {what}; at most {RATIO} for each byte are believed"
            )


class GuardedFile:
    """What ``pyarrow.PythonFile`` wants of a file, over one that can be read and sought.

    Attributes:
        failure: what the file itself raised: an error of the store, not of the data. None until then.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._chunks: list[_Chunk] = []
        self._bytes, self._values = _Claim(), _Claim()
        self.failure: Exception | None = None
        self.closed = False

    def close(self) -> None:
        """Arrow is done; the file stays open."""
        self.closed = True

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As a file does."""
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        """As a file does. Raises ``DamagedPages`` where a page that begins in these bytes may not be read."""
        start = self._file.tell()
        data = self._read(size)
        if self._chunks:
            self._look(start, data)
            self._file.seek(start + len(data))
        return data

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:
            self.failure = error
            raise

    def watch(self, metadata: pq.FileMetaData, group: int, names: Sequence[str]) -> int:
        """Guard the columns ``names`` of a row group from now on; the bytes that they declare to unpack to.

        Raises:
            DamagedPages: when columns are said to lie before the file, or in the same place.
        """
        wanted = set(names)
        row_group = metadata.row_group(group)
        self._chunks, declared = [], 0
        self._bytes, self._values = _Claim(), _Claim()  # bytes: of dictionaries and latest pages; values: of all lists
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

    def _look(self, start: int, data: bytes) -> None:
        place = bisect_right(self._chunks, start, key=lambda chunk: chunk.start) - 1
        for chunk in self._chunks[max(place, 0) :]:
            if chunk.start >= start + len(data):
                return
            while chunk.next < min(start + len(data), chunk.end):
                self._page(chunk, start, data)

    def _page(self, chunk: _Chunk, start: int, data: bytes) -> None:
        header, length = self._header(chunk, start, data)
        unpacked, packed = header.get(_UNCOMPRESSED), header.get(_COMPRESSED)
        if not isinstance(unpacked, int) or not isinstance(packed, int) or unpacked < 0 or packed < 0:
            raise DamagedPages(f"a page of the column {chunk.name!r} has a size of {packed} bytes, {unpacked} unpacked")
        chunk.next += length + packed
        # Without this a page could bring the bytes that its own claim is measured by. Old writers forgot a few.
        if chunk.next > chunk.end + _FORGOTTEN_BYTES:
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
        """The next page header of a chunk, and its length, from the bytes just read or from the file."""
        inside = chunk.next - start
        if 0 <= inside < len(data):
            try:
                return read_struct(data, inside)
            except Malformed:
                pass  # perhaps it only goes on beyond these bytes
        for size in _HEADER_BYTES:
            self._file.seek(chunk.next)
            block = self._read(min(size, chunk.end - chunk.next))
            try:
                return read_struct(block, 0)
            except Malformed as error:
                if len(block) < size:
                    raise DamagedPages(f"a page header of the column {chunk.name!r} is broken: {error}") from error
        raise DamagedPages(f"a page header of the column {chunk.name!r} is longer than {_HEADER_BYTES[-1]} bytes")
