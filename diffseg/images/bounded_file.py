"""Image files that would keep a decoder busy for hours: what no photograph needs is refused."""

from __future__ import annotations

import io
import os
from typing import IO

# Pillow walks some headers byte by byte, and a file can be all header.
_MAX_READS = 2**18
# A scan of a progressive JPEG can have a dozen bytes and costs a pass over every pixel; encoders make about ten.
_MAX_JPEG_SCANS = 200
_JPEG_SCAN = b"\xff\xda"
_BLOCK_BYTES = 2**20


class EndlessFile(ValueError):
    """The file has more parts than an image ever has."""


class _Counted(io.BufferedIOBase):
    """Gives up on a file that is read in more pieces than a photograph ever is."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > _MAX_READS:
            raise EndlessFile(f"it goes on after {_MAX_READS} pieces")
        return super().read(size)


class _Bytes(_Counted, io.BytesIO):
    pass


class _File(_Counted, io.BufferedReader):
    pass


def open_bounded(source: bytes | str | os.PathLike[str]) -> IO[bytes]:
    """The encoded bytes, or the file at a path, as a file whose ``read`` raises ``EndlessFile`` at too many calls."""
    return _Bytes(source) if isinstance(source, bytes) else _File(io.FileIO(source))


def check_scans(file: IO[bytes]) -> None:
    """Raise ``EndlessFile`` for a JPEG with more scans than any encoder makes. Leaves the file at its start."""
    scans, last = 0, b""
    while block := file.read(_BLOCK_BYTES):
        scans += (last + block).count(_JPEG_SCAN)
        last = block[-1:]
    file.seek(0)
    if scans > _MAX_JPEG_SCANS:
        raise EndlessFile(f"{scans} scans; at most {_MAX_JPEG_SCANS} are decoded")
