"""A folder on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from pipeline.storage.atomic_write import create_atomically, is_temporary, write_atomically
from pipeline.storage.backend import ListedFile


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
        return [_listed(f"{prefix}/{path}" if prefix else path, status) for path, status in _walk(folder, depth)]

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

    def open(self, path: str) -> IO[bytes]:
        """Open a file for binary reading."""
        return open(path, "rb")

    def read_bytes(self, path: str) -> bytes:
        """Return the content of a file."""
        with open(path, "rb") as file:
            return file.read()

    def read_small(self, paths: Sequence[str]) -> list[bytes | None]:
        """Return the contents of many files, with None for each file that cannot be opened."""
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


def _walk(folder: str, depth: int | None) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the relative path and the status of each file below `folder`, without temporary files.

    Follows links to folders, except those that lead back to a parent folder. Yields nothing if the folder is missing.
    File names that are not UTF-8 contain Python's surrogate escapes.
    """
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        relative, parents = pending.pop()
        try:
            status = os.stat(os.path.join(folder, relative))
            entries = list(os.scandir(os.path.join(folder, relative)))
        except (FileNotFoundError, NotADirectoryError):
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in parents:
            continue
        for entry in entries:
            path = f"{relative}/{entry.name}" if relative else entry.name
            if entry.is_dir():
                if depth is None or path.count("/") + 1 < depth:
                    pending.append((path, parents | {identity}))
            elif entry.is_file() and not is_temporary(path):
                yield path, entry.stat()


def _read_if_possible(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        return None
