"""Bounds on the work that an image file can cause: files that would keep a decoder busy for hours are refused."""

from __future__ import annotations

import io
import os
from typing import IO

_MAX_READS = 2**18
"""Largest number of `read` calls on a file. Pillow walks some headers byte by byte, and a file can be all header."""

_MAX_JPEG_SCANS = 200
"""Largest number of scans of a progressive JPEG.

A scan can have a dozen bytes and costs a pass over every pixel; encoders write about ten.
"""

_JPEG_SCAN = b"\xff\xda"
_BLOCK_BYTES = 2**20


class EndlessFileError(ValueError):
    """The file has more parts than any real image."""


class _CountedFile(io.BufferedIOBase):
    """A file that raises `EndlessFileError` after more reads than any real image needs."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > _MAX_READS:
            raise EndlessFileError(f"it goes on after {_MAX_READS} pieces")
        return super().read(size)


class _Bytes(_CountedFile, io.BytesIO):
    pass


class _File(_CountedFile, io.BufferedReader):
    pass


def open_bounded(source: bytes | str | os.PathLike[str]) -> IO[bytes]:
    """Open encoded bytes, or the file at a path, as a file whose `read` raises `EndlessFileError` at too many calls."""
    return _Bytes(source) if isinstance(source, bytes) else _File(io.FileIO(source))


def check_scans(file: IO[bytes]) -> None:
    """Count the scans of a JPEG, and return to the start of the file.

    Raises:
        EndlessFileError: There are more scans than any encoder writes.
    """
    scans, last = 0, b""
    while block := file.read(_BLOCK_BYTES):
        scans += (last + block).count(_JPEG_SCAN)
        last = block[-1:]
    file.seek(0)
    if scans > _MAX_JPEG_SCANS:
        raise EndlessFileError(f"{scans} scans; at most {_MAX_JPEG_SCANS} are decoded")
