"""The interface through which `Storage` reaches files on this machine and files in a remote store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO, NamedTuple, Protocol

SMALL_BYTES = 2**20
"""Size in bytes up to which `read_small` returns a complete file."""


class ListedFile(NamedTuple):
    """A file in the listing of a folder.

    Attributes:
        path: The path relative to the root folder of the backend.
        size: The size in bytes.
        version: A text that changes when the content changes, as far as the store can tell. It is "" where the listing
            says nothing about versions.
    """

    path: str
    size: int
    version: str


class SkippedEntry(NamedTuple):
    """A file or folder that a listing had to skip.

    Attributes:
        path: The path relative to the root folder of the backend.
        reason: The kind of problem, such as "unreadable folder".
        hides_files: Files may exist there that the listing does not name.
    """

    path: str
    reason: str
    hides_files: bool


class FolderListing(NamedTuple):
    """The files of a folder, and what the listing had to skip."""

    files: list[ListedFile]
    skipped: list[SkippedEntry]


class FolderBackend(Protocol):
    """The file operations below a root folder, implemented once for local files and once for remote stores.

    Every path is complete: a local path, or a URL, of the root folder or of something below it. `Storage` documents
    what each operation promises. A missing file raises `FileNotFoundError`, and every other failure is an
    `OSError` too.
    """

    def list_files(self, folder: str, depth: int | None, *, with_versions: bool = False) -> list[ListedFile]:
        """List the files below `folder`, in any order.

        Args:
            folder: A folder that need not exist; then the result is empty.
            depth: The number of folder levels to list, or None for all of them.
            with_versions: Fill in `version` even where this takes a request for each file.
        """
        ...

    def survey(self, depth: int | None, without: Sequence[str]) -> FolderListing:
        """List the files below the root folder, in any order, and skip what cannot be listed.

        Args:
            depth: The number of folder levels to list, or None for all of them.
            without: Folders of the same backend whose files are left out.

        Raises:
            OSError: The root folder itself cannot be listed.
        """
        ...

    def names(self, folder: str) -> list[str]:
        """Return the names of the files and folders directly in `folder`, which need not exist, in any order."""
        ...

    def stat(self, path: str) -> ListedFile:
        """Return the size and the version of a file, the same as in a listing without `with_versions`."""
        ...

    def exists(self, path: str) -> bool:
        """Return True if a file or a folder exists at `path`."""
        ...

    def is_file(self, path: str) -> bool:
        """Return True if a file exists at `path`."""
        ...

    def open(self, path: str, *, block_bytes: int = 0) -> IO[bytes]:
        """Open a file for binary reading, in requests of `block_bytes` bytes if it is remote."""
        ...

    def read_bytes(self, path: str) -> bytes:
        """Return the content of a file."""
        ...

    def read_small(self, paths: Sequence[str]) -> list[bytes | None]:
        """Return the contents of many small files, with None for each file that cannot be opened."""
        ...

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a file atomically, replacing an existing one."""
        ...

    def create_bytes(self, path: str, data: bytes) -> bool:
        """Write a file atomically unless it exists. Return True if this call created it."""
        ...

    def write_file(self, path: str, source: str | os.PathLike[str]) -> None:
        """Copy a local file to `path` atomically, replacing an existing file."""
        ...

    def delete(self, path: str) -> None:
        """Delete a file."""
        ...
