"""The decompressed bytes of a tar archive, read front to back from a file that may be damaged."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import IO, Any, cast

BUFFER_BYTES = 2**20

# Extended headers hold names. tarfile reads them into memory whatever size they claim, in nested calls.
MAX_EXTENDED_HEADER_BYTES = 12 * 2**20

_GZIP_MAGIC = b"\x1f\x8b"
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)


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
        self._file = _decompressed(self._buffered)
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
                self.damage = f"the gzip compression is damaged: {error}"
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


def _decompressed(file: io.BufferedReader) -> Any:
    """Return a file object of the decompressed bytes, which is `file` itself if it is not compressed."""
    if file.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC):
        return gzip.GzipFile(fileobj=file)
    return file
