"""Lists the files below a folder of this machine, and says what it had to skip."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from pipeline.storage.atomic_write import is_temporary
from pipeline.storage.backend import ListedFile, SkippedEntry

Identity = tuple[int, int]
"""Device and inode of a folder, which are the same through every link and mount."""

UNREADABLE_FOLDER = "unreadable folder"
UNREADABLE_FILE = "unreadable file"
BROKEN_LINK = "broken link"
LOOP = "link to a folder above it"
SPECIAL_FILE = "special file"

_SYSTEM_FOLDERS = frozenset(("lost+found", "System Volume Information", "$RECYCLE.BIN"))
"""Folders at the root of a file system that only the system may read, and that hold no data of a user."""


@dataclass
class FolderWalk:
    """A walk through a folder. Links to folders are followed, unless they lead back to a folder above them.

    Attributes:
        folder: The folder. It need not exist.
        depth: The number of folder levels to list, or None for all of them.
        without: Folders whose files are left out, by whichever path the walk reaches them.
        skipped: What could not be listed, filled in by `files`.
    """

    folder: str
    depth: int | None = None
    without: Collection[str] = ()
    skipped: list[SkippedEntry] = field(default_factory=list)

    def files(self) -> Iterator[ListedFile]:
        """Yield the files with paths relative to the folder, without temporary files.

        A version is the modification time in nanoseconds. Names that are not UTF-8 contain Python's surrogate escapes.
        Files that disappear during the walk are left out, as if they had been deleted before it.

        Raises:
            OSError: The folder itself exists, but cannot be listed.
        """
        excluded = {identity for path in self.without if (identity := _identity(path)) is not None}
        real_excluded = tuple(os.path.realpath(path) + os.sep for path in self.without)
        pending: list[tuple[str, frozenset[Identity]]] = [("", frozenset())]
        while pending:
            relative, parents = pending.pop()
            try:
                status = os.stat(os.path.join(self.folder, relative))
                identity = (status.st_dev, status.st_ino)
                if identity in excluded:
                    continue
                if identity in parents:
                    self.skipped.append(SkippedEntry(relative, LOOP, hides_files=False))
                    continue
                with os.scandir(os.path.join(self.folder, relative)) as scan:
                    entries = list(scan)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                if not relative:
                    raise
                hides_files = relative.rpartition("/")[2] not in _SYSTEM_FOLDERS
                self.skipped.append(SkippedEntry(relative, UNREADABLE_FOLDER, hides_files=hides_files))
                continue
            for entry in entries:
                path = f"{relative}/{entry.name}" if relative else entry.name
                if _leads_into(entry, real_excluded):
                    continue
                if self._is_folder(entry):
                    if self.depth is None or path.count("/") + 1 < self.depth:
                        pending.append((path, parents | {identity}))
                elif (file := self._file(entry, path)) is not None:
                    yield file

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:  # a link to itself, or a target that cannot be read; `_file` says so
            return False

    def _file(self, entry: os.DirEntry[str], path: str) -> ListedFile | None:
        """Return a file, or None for anything else, which is noted as skipped."""
        if is_temporary(path):
            return None
        is_link = entry.is_symlink()
        try:
            status = entry.stat()
            if not entry.is_file():
                self.skipped.append(SkippedEntry(path, SPECIAL_FILE, hides_files=False))
                return None
        except OSError as error:
            if is_link and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                # A broken link without an extension is probably that of a folder, such as a disk that is not mounted.
                hides_files = "." not in entry.name
                self.skipped.append(SkippedEntry(path, BROKEN_LINK, hides_files=hides_files))
            elif error.errno != errno.ENOENT:
                self.skipped.append(SkippedEntry(path, UNREADABLE_FILE, hides_files=True))
            return None
        return ListedFile(path, status.st_size, str(status.st_mtime_ns))


def _leads_into(entry: os.DirEntry[str], folders: tuple[str, ...]) -> bool:
    """Return True if an entry is a link to something in one of the folders, whose real paths end with a slash."""
    return bool(folders) and entry.is_symlink() and os.path.realpath(entry.path).startswith(folders)


def is_below(path: str, folder: str) -> bool:
    """Return True if a local path is a folder or lies in it, also through links and mounts. Neither need exist."""
    real, real_folder = os.path.realpath(path), os.path.realpath(folder)
    if (real + os.sep).startswith(real_folder.rstrip(os.sep) + os.sep):
        return True
    identity = _identity(real_folder)
    while identity is not None and real != os.path.dirname(real):
        if _identity(real) == identity:
            return True
        real = os.path.dirname(real)
    return False


def _identity(path: str) -> Identity | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
