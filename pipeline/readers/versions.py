"""Versions of the inputs of shards: from a listing, so that no file is opened, and again while a file is read."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from pipeline.digest import short_digest
from pipeline.readers.samples import Shard
from pipeline.storage import Storage, redact
from pipeline.storage.backend import ListedFile
from pipeline.storage.urls import split_url


class SourceChanged(OSError):
    """A tar or Parquet file changed while it was read. Another attempt may find it unchanged."""


def file_version(file: ListedFile) -> str:
    """Return 16 hexadecimal digits for the size and the version of a file, or "" if its version is unknown."""
    return short_digest(f"{file.size} {file.version}") if file.version else ""


def group_version(files: Sequence[ListedFile]) -> str:
    """Return 16 hexadecimal digits for the paths, sizes and versions of files, or "" if a version is unknown."""
    if not all(file.version for file in files):
        return ""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.version}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


class ReadCheck:
    """Checks that the file of a shard is the same at the end of reading it as at its beginning.

    The images of a group are not checked: each is read at once, and its version was listed before. If a file of the
    group is replaced after the listing, the next listing has another version.

    Attributes:
        shard: The shard, with the version of the file that is read.
    """

    def __init__(self, shard: Shard, source: Storage) -> None:
        """Look up the file, before it is opened.

        Args:
            shard: A shard from `find_shards`.
            source: The storage options and retry timeout for the store of the shard.
        """
        folder, self._name = split_url(shard.url)
        self._storage = source.at(folder)
        self._is_file = shard.kind != "images"
        self._opened = self._stat() if self._is_file else None
        self.shard = shard if self._opened is None else dataclasses.replace(shard, version=file_version(self._opened))

    def finish(self) -> None:
        """Compare the file with its state at the beginning.

        Raises:
            SourceChanged: Its size or its version differs, or it is gone.
        """
        if self._is_file and (now := self._stat()) != self._opened:
            before, after = ("none" if file is None else f"{file.size} bytes" for file in (self._opened, now))
            raise SourceChanged(f"{redact(self.shard.url)}: changed while it was read (before: {before}; now: {after})")

    def _stat(self) -> ListedFile | None:
        try:
            return self._storage.stat(self._name)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None  # the reader says what is wrong
