"""A file in a remote store as a file object that reads large blocks."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

BLOCK_BYTES = 2**24
"""Size of a request. Object stores throttle clients that send many small ones."""
CACHED_BLOCKS = 4
"""Blocks kept in memory, since a reader of Parquet alternates between the columns of a file."""


class RemoteFile(io.RawIOBase):
    """A file that is read in blocks, with a cache of the latest ones."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, *, block_bytes: int = BLOCK_BYTES) -> None:
        """Open a file.

        Args:
            fetch: Returns the bytes [start, end) of the file.
            size: The size of the file in bytes.
            block_bytes: The size of a block in bytes.
        """
        from fsspec.caching import BlockCache  # imported late, because `diffseg COMMAND --help` needs no fsspec

        self._size = size
        self._position = 0
        self._blocks: Any = BlockCache(block_bytes, fetch, size, maxblocks=CACHED_BLOCKS)

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
