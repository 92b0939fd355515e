"""A folder on this machine."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from pipeline.storage.atomic_write import create_atomically, write_atomically
from pipeline.storage.backend import SMALL_BYTES, FolderListing, ListedFile
from pipeline.storage.walk import UNREADABLE_FILE, UNREADABLE_FOLDER, FolderWalk


class SpecialFileError(OSError):
    """A path where a file is expected is a FIFO, a socket or a device."""


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """The `FolderBackend` of local files.

    Attributes:
        root: The absolute path of the root folder.
    """

    root: str

    def list_files(self, folder: str, depth: int | None, *, with_versions: bool = False) -> list[ListedFile]:
        """List the files below `folder`; a version is the modification time in nanoseconds."""
        prefix = folder.removeprefix(self.root).lstrip("/")
        walk = FolderWalk(folder, depth)
        files = [file._replace(path=f"{prefix}/{file.path}") if prefix else file for file in walk.files()]
        unreadable = (UNREADABLE_FOLDER, UNREADABLE_FILE)
        if lost := next((entry for entry in walk.skipped if entry.reason in unreadable), None):
            raise PermissionError(f"{folder}/{lost.path}: {lost.reason}")
        return files

    def survey(self, depth: int | None, without: Sequence[str]) -> FolderListing:
        """List the files below the root folder, and skip what cannot be listed."""
        walk = FolderWalk(self.root, depth, without)
        return FolderListing(list(walk.files()), walk.skipped)

    def names(self, folder: str) -> list[str]:
        """Return the names of the files and folders directly in `folder`."""
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []

    def stat(self, path: str) -> ListedFile:
        """Return the size and the version of a file."""
        return _listed(path.removeprefix(self.root).lstrip("/"), os.stat(path))

    def exists(self, path: str) -> bool:
        """Return True if a file or a folder exists at `path`."""
        return os.path.exists(path)

    def is_file(self, path: str) -> bool:
        """Return True if a file exists at `path`."""
        return os.path.isfile(path)

    def open(self, path: str, *, block_bytes: int = 0) -> IO[bytes]:
        """Open a file for binary reading."""
        return open_regular(path)

    def read_bytes(self, path: str) -> bytes:
        """Return the content of a file."""
        with open_regular(path) as file:
            return file.read()

    def read_small(self, paths: Sequence[str]) -> list[bytes | None]:
        """Return the first `SMALL_BYTES` of many files, with None for each file that cannot be opened."""
        return [_read_if_possible(path) for path in paths]

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a file atomically, replacing an existing one."""
        write_atomically(path, data)

    def create_bytes(self, path: str, data: bytes) -> bool:
        """Write a file atomically unless it exists. Return True if this call created it."""
        return create_atomically(path, data)

    def write_file(self, path: str, source: str | os.PathLike[str]) -> None:
        """Copy a local file to `path` atomically, replacing an existing file."""
        with open(source, "rb") as file:
            write_atomically(path, file)

    def delete(self, path: str) -> None:
        """Delete a file."""
        os.remove(path)


def _listed(path: str, status: os.stat_result) -> ListedFile:
    return ListedFile(path, status.st_size, str(status.st_mtime_ns))


def _read_if_possible(path: str) -> bytes | None:
    try:
        with open_regular(path) as file:
            return file.read(SMALL_BYTES)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, SpecialFileError):
        return None


def open_regular(path: str) -> IO[bytes]:
    """Open a regular file for binary reading. Unlike `open`, this never waits for the writer of a FIFO.

    Raises:
        SpecialFileError: The file is a FIFO, a socket or a device.
    """
    return open(path, "rb", opener=_open_without_waiting)


def _open_without_waiting(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # `open` refuses folders itself
        return descriptor
    os.close(descriptor)
    raise SpecialFileError(errno.EINVAL, "is a FIFO or a device; expected a file", path)
