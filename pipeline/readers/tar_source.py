"""The decompressed bytes of a tar archive, read front to back from a file that may be damaged."""

from __future__ import annotations

import bz2
import gzip
import io
import re
import zlib
from typing import IO, Any, cast

import pyarrow as pa

BUFFER_BYTES = 2**20

# Extended headers hold names. tarfile reads them into memory whatever size they claim, in nested calls.
MAX_EXTENDED_HEADER_BYTES = 12 * 2**20

_GZIP = re.compile(rb"\x1f\x8b")
# The name of a first member may begin with BZh, so the mark of the first block is compared as well.
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)
"""First bytes of a compressed file; zstd begins with a frame of data or with one to be skipped."""
_MAGIC_BYTES = 10
_DAMAGE = (EOFError, OSError, ValueError, zlib.error)
"""Errors of the decompressors. An OSError can also come from the store; the guard knows whether it does."""


class _Guard(io.RawIOBase):
    """The compressed file, with the error that a read of it raised."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read1(len(buffer))
        except Exception as error:
            self.failure = error
            raise
        buffer[: len(data)] = data
        return len(data)


class _Zstd:
    """A zstd stream, decompressed by Arrow within bounded memory. It may have several frames."""

    def __init__(self, file: IO[bytes]) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")

    def read1(self, size: int) -> bytes:
        return bytes(self._stream.read(size))

    def close(self) -> None:
        self._stream.close()


class DamagedTar(Exception):
    """The archive cannot be read any further. The members before this point are intact."""


class TarSource:
    """A file object for `tarfile` that decompresses and counts what it reads.

    Damaged compression ends the bytes instead of raising an error, so that everything before it can be read.

    Attributes:
        bytes_read: The number of decompressed bytes so far.
        limit: The value of `bytes_read` above which a read raises `DamagedTar`, or None. It bounds the headers of
            a member.
        damage: A description of damaged compression, or "".
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Wrap an open file, which is decompressed if its first bytes say that it is compressed."""
        self._buffered = io.BufferedReader(cast("Any", file), BUFFER_BYTES)
        self._guard = _Guard(self._buffered)
        self._file, self._compression = _decompressed(self._buffered, self._guard)
        self.bytes_read = 0
        self.limit: int | None = None
        self.damage = ""

    def close(self) -> None:
        """Release the file without closing it."""
        if self._file is not self._buffered:
            self._file.close()
        # Otherwise the garbage collector would close the file of the caller together with the buffer.
        self._buffered.detach()

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or fewer at the end of the archive.

        Raises:
            DamagedTar: More bytes were read than `limit` allows.
        """
        blocks = []
        while size > 0 and not self.damage:
            try:
                # `read` would discard what it has already decompressed when the file ends early; `read1` does not.
                block = self._file.read1(size)
            except _DAMAGE as error:
                if self._guard.failure is not None:
                    raise self._guard.failure from None
                if not self._compression:
                    raise
                self.damage = f"the {self._compression} compression is damaged: {error}"
                break
            if not block:
                break
            blocks.append(block)
            size -= len(block)
        data = b"".join(blocks)
        self.bytes_read += len(data)
        if self.limit is not None and self.bytes_read > self.limit:
            raise DamagedTar(f"the headers of one member have more than {MAX_EXTENDED_HEADER_BYTES} bytes")
        return data


def _decompressed(file: io.BufferedReader, guard: _Guard) -> tuple[Any, str]:
    """Return a file object of the decompressed bytes and the compression; `file` itself and "" if there is none."""
    magic = file.peek(_MAGIC_BYTES)
    if _GZIP.match(magic):
        return gzip.GzipFile(fileobj=cast("IO[bytes]", io.BufferedReader(guard, BUFFER_BYTES))), "gzip"
    if _BZIP2.match(magic):
        return bz2.BZ2File(cast("IO[bytes]", io.BufferedReader(guard, BUFFER_BYTES))), "bzip2"
    if _ZSTD.match(magic):
        return _Zstd(cast("IO[bytes]", io.BufferedReader(guard, BUFFER_BYTES))), "zstd"
    return file, ""
