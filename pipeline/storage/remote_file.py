"""A file in a store as a file object, read in large blocks."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from fsspec.caching import BlockCache

BLOCK_BYTES = 2**24
"""Of one request: many small ones are what object stores throttle."""
BLOCKS = 4
"""Kept in memory, since the columns of a Parquet file are read alternately."""


class RemoteFile(io.RawIOBase):
    """The bytes that ``fetch`` gives for ranges [start, end), in blocks that are asked for once each."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._size = size
        self._position = 0
        self._blocks: Any = BlockCache(BLOCK_BYTES, fetch, size, maxblocks=BLOCKS)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        data = self._blocks._fetch(self._position, end) if end > self._position else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
