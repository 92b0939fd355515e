"""Read a tar front to back, and notice when it is damaged.

Python's ``tarfile`` takes a broken or half header in mid-file for the end of the archive, and says nothing. Here every
member comes out up to the damage, and then ``DamagedTar``.
"""

from __future__ import annotations

import gzip
import io
import logging
import tarfile
import zlib
from collections.abc import Iterator
from itertools import count
from typing import IO, Any, cast

logger = logging.getLogger(__name__)

_BUFFER_BYTES = 2**20
# Extended headers hold names; tarfile reads them into memory whatever size they claim, one inside the call of another.
_MAX_EXTENDED_HEADER_BYTES = 12 * 2**20
_MAX_GLOBAL_HEADER_BYTES = 2**16  # it is copied for every member behind it
_MAX_HEADERS = 8  # for one member: its own, and what stands before it
_EXTENDED_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class DamagedTar(Exception):
    """The archive cannot be read any further. What came out before is good."""


class NotTar(Exception):
    """The file is no tar archive."""


class _TarInfo(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _TarInfo:
        info = super().frombuf(buf, encoding, errors)
        limit = _MAX_GLOBAL_HEADER_BYTES if info.type == tarfile.XGLTYPE else _MAX_EXTENDED_HEADER_BYTES
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
            # Not a HeaderError any more, which the caller would take for the end of the archive.
            raise DamagedTar(f"broken header of a member: {error}") from error


class _TarFile(tarfile.TarFile):
    tarinfo = _TarInfo
    has_end_marker = False
    headers = 0  # before the member that is being looked for


class TarStream:
    """The members of a tar or tar.gz, in order, from a file that is read once and never sought."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        """``name`` is for messages; whether the file is compressed is seen from its first bytes.

        Raises:
            NotTar: when it does not start with a tar header.
        """
        self._name = name
        self._source = _Source(file)
        self._source.limit = _MAX_EXTENDED_HEADER_BYTES
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
                f"{self._source.seen} bytes were read, which do not start with a tar header ({reason})"
            ) from error

    def close(self) -> None:
        """Let go of the file, which stays open."""
        self._source.close()

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Each member; its data must be read or skipped before the next one is asked for.

        Raises:
            DamagedTar: after the last whole header, when the archive goes on but cannot be read.
        """
        for place in count():
            try:
                if place:  # the first header has been read already
                    self._pass_over_rest()
                # Maps of sparse files are headers too, and go on for as long as they say.
                self._source.limit = self._source.seen + _MAX_EXTENDED_HEADER_BYTES + _BUFFER_BYTES
                self._tar.headers = 0
                member = self._tar.next()
                self._source.limit = None
            except (DamagedTar, tarfile.TarError, OverflowError, ValueError) as error:
                raise DamagedTar(self._source.damage or f"the archive breaks off: {error}") from error
            if member is None:
                break
            self._tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member of a shard otherwise
            yield member
        self._check_end()

    def _pass_over_rest(self) -> None:
        """Up to the next header: of a sparse file nobody has read the data."""
        stream: Any = self._tar.fileobj
        if self._tar.offset - 1 > stream.tell():  # the last byte is for tarfile, which sees the end by it
            self._source.limit = None
            stream.seek(self._tar.offset - 1)

    def read(self, member: tarfile.TarInfo) -> bytes:
        """The data of a member. Raises ``DamagedTar`` when it ends too early."""
        return b"".join(self._blocks(member))

    def skip(self, member: tarfile.TarInfo) -> None:
        """Pass over the data of a member. Raises ``DamagedTar`` when it ends too early."""
        if member.isreg() and not member.issparse():
            for _ in self._blocks(member):
                pass

    def _blocks(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        try:
            data = self._tar.extractfile(member)
            while data is not None and (block := data.read(_BUFFER_BYTES)):
                yield block
        except (tarfile.TarError, ValueError) as error:
            raise DamagedTar(self._source.damage or f"the data of {member.name!r} ends too early: {error}") from error

    def _check_end(self) -> None:
        if self._tar.has_end_marker:
            stream: Any = self._tar.fileobj  # and not the source: tarfile has read ahead
            while block := stream.read(_BUFFER_BYTES):
                if block.count(0) != len(block):
                    raise DamagedTar(
                        "data follows the end of the archive: zeros in mid-file, or tars put one after another"
                    )
        if self._source.damage:
            raise DamagedTar(self._source.damage)
        if not self._tar.has_end_marker:
            logger.warning("%s: the tar has no end-of-archive marker; all its members are whole", self._name)


class _Source:
    """The bytes of the archive, decompressed; damaged compression ends them and is noted in ``damage``."""

    def __init__(self, file: IO[bytes]) -> None:
        self._buffered = io.BufferedReader(cast("Any", file), _BUFFER_BYTES)
        is_gzip = self._buffered.peek(2)[:2] == b"\x1f\x8b"
        self._file: Any = gzip.GzipFile(fileobj=self._buffered) if is_gzip else self._buffered
        self.seen = 0
        self.limit: int | None = None  # of bytes seen: what is more cannot belong to headers
        self.damage = ""

    def close(self) -> None:
        if self._file is not self._buffered:
            self._file.close()
        # Or the buffer would close the file of somebody else when it is collected.
        self._buffered.detach()

    def read(self, size: int) -> bytes:
        blocks = []
        while size > 0 and not self.damage:
            try:
                # read1, since read throws away what it has when the file breaks off.
                block = self._file.read1(size)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                self.damage = f"the gzip compression is damaged: {error}"
                break
            if not block:
                break
            blocks.append(block)
            size -= len(block)
        data = b"".join(blocks)
        self.seen += len(data)
        if self.limit is not None and self.seen > self.limit:
            raise DamagedTar(f"the headers of one member have more than {_MAX_EXTENDED_HEADER_BYTES} bytes")
        return data
