"""Read the members of a tar front to back, and notice where the archive is damaged.

Python's `tarfile` silently takes a broken or incomplete header in the middle of a file for the end of the archive.
Here every member before the damage is read, and then `DamagedTar` is raised.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import count
from typing import IO, Any, cast

from pipeline.readers.tar_source import BUFFER_BYTES, MAX_EXTENDED_HEADER_BYTES, DamagedTar, TarSource

_MAX_GLOBAL_HEADER_BYTES = 2**16
"""Size of a global header, which tarfile copies for every member after it."""
_MAX_HEADERS = 8
"""Headers of a member: its own and the extended ones before it."""
_EXTENDED_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class NotTar(Exception):
    """The file is not a tar archive."""


class _TarInfo(tarfile.TarInfo):
    """A member whose headers are checked before tarfile believes them."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _TarInfo:
        info = super().frombuf(buf, encoding, errors)
        limit = _MAX_GLOBAL_HEADER_BYTES if info.type == tarfile.XGLTYPE else MAX_EXTENDED_HEADER_BYTES
        if info.type in _EXTENDED_TYPES and info.size > limit:
            raise tarfile.InvalidHeaderError(f"an extended header claims {info.size} bytes")  # type: ignore[attr-defined]
        if info.size < 0:
            raise tarfile.InvalidHeaderError(f"a size of {info.size} bytes")  # type: ignore[attr-defined]
        return info

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _TarInfo:
        archive = cast("_TarFile", tarfile_)
        archive.headers += 1
        if archive.headers > _MAX_HEADERS:
            raise DamagedTar(f"more than {_MAX_HEADERS} headers before one member")
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.has_end_marker = True
            raise
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            # Raised as another class, because tarfile takes these for the end of the archive.
            raise DamagedTar(f"broken header of a member: {error}") from error


class _TarFile(tarfile.TarFile):
    tarinfo = _TarInfo
    has_end_marker = False
    headers = 0  # read since the previous member


class TarStream:
    """The members of a tar or tar.gz in order. The file is read once, without seeking."""

    def __init__(self, file: IO[bytes]) -> None:
        """Open an archive and read its first header.

        Args:
            file: Opened for binary reading, at its start. Compression is recognised from the first bytes.

        Raises:
            NotTar: The file does not start with a tar header.
        """
        self._source = TarSource(file)
        self._source.limit = MAX_EXTENDED_HEADER_BYTES
        try:
            self._tar = _TarFile.open(
                fileobj=cast("IO[bytes]", self._source),
                mode="r|",
                encoding="utf-8",
                errors="surrogateescape",
                bufsize=2**16,
            )
        except (tarfile.TarError, DamagedTar) as error:
            self._source.close()
            reason = self._source.damage or error
            raise NotTar(
                f"{self._source.bytes_read} bytes were read, which do not start with a tar header ({reason})"
            ) from error

    def close(self) -> None:
        """Release the file without closing it."""
        self._source.close()

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Yield each member. Its data must be read or skipped before the next member is requested.

        Raises:
            DamagedTar: The archive goes on after the last intact header, but cannot be read.
        """
        for number in count():
            try:
                if number:  # the constructor has already read the first header
                    self._skip_unread_data()
                # The maps of sparse files are headers too, and can claim any length.
                self._source.limit = self._source.bytes_read + MAX_EXTENDED_HEADER_BYTES + BUFFER_BYTES
                self._tar.headers = 0
                member = self._tar.next()
                self._source.limit = None
            except (DamagedTar, tarfile.TarError, OverflowError, ValueError) as error:
                raise DamagedTar(self._source.damage or f"the archive breaks off: {error}") from error
            if member is None:
                break
            self._tar.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every member in memory
            yield member
        self._check_end()

    def read(self, member: tarfile.TarInfo) -> bytes:
        """Return the data of a member. Raises `DamagedTar` if it ends too early."""
        return b"".join(self._blocks(member))

    def skip(self, member: tarfile.TarInfo) -> None:
        """Skip the data of a member. Raises `DamagedTar` if it ends too early."""
        if member.isreg() and not member.issparse():
            for _ in self._blocks(member):
                pass

    def _skip_unread_data(self) -> None:
        """Move to the next header. The data of a sparse member has not been read."""
        stream: Any = self._tar.fileobj
        if self._tar.offset - 1 > stream.tell():  # tarfile reads the last byte itself, to notice an early end
            self._source.limit = None
            stream.seek(self._tar.offset - 1)

    def _blocks(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        try:
            data = self._tar.extractfile(member)
            while data is not None and (block := data.read(BUFFER_BYTES)):
                yield block
        except (tarfile.TarError, ValueError) as error:
            raise DamagedTar(self._source.damage or f"the data of {member.name!r} ends too early: {error}") from error

    def _check_end(self) -> None:
        """Check that there is an end marker, and that nothing but zeros follows it. Raises `DamagedTar` otherwise."""
        if self._tar.has_end_marker:
            stream: Any = self._tar.fileobj  # not the source, from which tarfile has read ahead
            while block := stream.read(BUFFER_BYTES):
                if block.count(0) != len(block):
                    raise DamagedTar(
                        "data follows the end of the archive: zeros in mid-file, or tars put one after another"
                    )
        if self._source.damage:
            raise DamagedTar(self._source.damage)
        if not self._tar.has_end_marker:
            # An upload that is still going on, or a copy that broke off, can end exactly between two members.
            raise DamagedTar("the tar has no end-of-archive marker, so members may be missing")
