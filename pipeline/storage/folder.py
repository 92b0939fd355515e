"""A folder on this machine or in a remote store, with the same operations for both.

The rest of the pipeline relies on three guarantees: a file appears under its name only when it is complete, requests
are retried while a store is busy or unreachable, and no secret of a URL or of the storage options appears in a message.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import IO, Any

from pipeline.storage.backend import FolderBackend, FolderListing, ListedFile
from pipeline.storage.filesystems import path_below
from pipeline.storage.local import LocalFolder
from pipeline.storage.redaction import redact, register_secrets
from pipeline.storage.remote import RemoteFolder
from pipeline.storage.remote_file import BLOCK_BYTES
from pipeline.storage.retries import RETRY_TIMEOUT_SECONDS
from pipeline.storage.unwritable import check_writable
from pipeline.storage.urls import SourceError, join_url, local_path, scheme
from pipeline.storage.walk import is_below


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """A root folder, given by a URL or a local path. It is cheap to pickle: each process opens its own connections.

    All paths that the methods take and return are relative to `url` and use `/`. Every failure is an `OSError`:
    `FileNotFoundError` and `PermissionError` as for local files, `StoreUnavailable`, or another one. The message
    names the URL.

    Attributes:
        url: The folder. A local path is made absolute, so that it means the same in every process.
        options: The storage options for fsspec, such as credentials and an endpoint. They are never shown.
        retry_timeout: Seconds during which a failing request is retried before `StoreUnavailable` is raised.
    """

    url: str
    options: Mapping[str, Any] | None = field(default=None, repr=False, hash=False)
    retry_timeout: float = field(default=RETRY_TIMEOUT_SECONDS, repr=False)
    _backend: FolderBackend = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        url = self.url
        if not url:
            raise SourceError("an empty path or URL was given; name a folder or a URL such as s3://bucket/folder")
        local = not scheme(url)
        if local:
            url = os.path.abspath(os.path.expanduser(local_path(url)))
        # "memory://" and "s3://" name the root of a store and keep their slashes.
        stripped = url.rstrip("/")
        url = stripped if stripped and not stripped.endswith(":") else url
        backend: FolderBackend = (
            LocalFolder(url)
            if local
            else RemoteFolder(root=url, options=self.options or {}, retry_timeout=self.retry_timeout)
        )
        object.__setattr__(self, "url", url)
        object.__setattr__(self, "_backend", backend)
        register_secrets(self.options)

    def __reduce__(self) -> tuple[Any, ...]:
        # Unpickling calls the constructor, so that the receiving process masks the secrets as well.
        return _storage, (self.url, self.options, self.retry_timeout)

    def __repr__(self) -> str:
        return f"Storage({self.redacted!r})"

    def at(self, url: str) -> Storage:
        """Return another folder with the same options and retry timeout."""
        return replace(self, url=url)

    @property
    def redacted(self) -> str:
        """The URL without secrets, for messages."""
        return redact(self.url)

    def joined(self, path: str) -> str:
        """Return the full URL of `path` without secrets, for messages."""
        return redact(self._full(path))

    def files(self, prefix: str = "", *, depth: int | None = None) -> list[tuple[str, int]]:
        """List the files below the folder `prefix`, without those that are still being written.

        Args:
            prefix: A folder below the root; "" is the root. A missing folder gives an empty list.
            depth: The number of folder levels to list, or None for all of them.

        Returns:
            The path relative to `url` and the size in bytes of each file, sorted by path.
        """
        return [(file.path, file.size) for file in self.list_files(prefix, depth=depth)]

    def list_files(self, prefix: str = "", *, depth: int | None = None) -> list[ListedFile]:
        """List files like `files`, with the version of each file as far as the listing itself tells it."""
        return sorted(self._backend.list_files(self._full(prefix), depth))

    def survey(self, *, depth: int | None = None, without: Sequence[Storage] = ()) -> FolderListing:
        """List files like `list_files`, and skip what cannot be listed instead of raising an error.

        Args:
            depth: The number of folder levels to list, or None for all of them.
            without: Folders whose files are left out, also where a link or a mount leads to them.

        Raises:
            OSError: The root folder itself cannot be listed.
        """
        inside = [place.url for place in without if is_local(place) == is_local(self)]
        files, skipped = self._backend.survey(depth, inside)
        return FolderListing(sorted(files), sorted(skipped))

    def names(self) -> list[str]:
        """Return the names of the files and folders directly in the root folder, sorted; [] if it does not exist."""
        return sorted(self._backend.names(self.url))

    def stat(self, path: str) -> ListedFile:
        """Return the size and the version of a file, as `list_files` returns them.

        A missing file raises `FileNotFoundError`.
        """
        return self._backend.stat(self._full(path))

    def versions(self, *, depth: int | None = None) -> list[ListedFile]:
        """List the files of the root folder like `files`, with the version of each file.

        Over http this takes a request for each file.
        """
        return sorted(self._backend.list_files(self.url, depth, with_versions=True))

    def exists(self, path: str = "") -> bool:
        """Return True if a file or a folder exists at `path`."""
        return self._backend.exists(self._full(path))

    def is_file(self, path: str) -> bool:
        """Return True if a file exists at `path`."""
        return self._backend.is_file(self._full(path))

    def open(self, path: str, *, block_bytes: int = BLOCK_BYTES) -> IO[bytes]:
        """Open a file for binary reading, at its start. A missing file raises `FileNotFoundError`.

        Args:
            path: The file.
            block_bytes: The size of a request to a remote store.
        """
        return self._backend.open(self._full(path), block_bytes=block_bytes)

    def read_bytes(self, path: str) -> bytes:
        """Return the content of a file."""
        return self._backend.read_bytes(self._full(path))

    def read_small(self, paths: Sequence[str]) -> list[bytes | None]:
        """Return the contents of many files of at most `SMALL_BYTES` each, with None for those that cannot be opened.

        A remote store is sent many requests at the same time.
        """
        return self._backend.read_small([self._full(path) for path in paths])

    def check_writable(self) -> None:
        """Check that the folder can be written, without writing; a remote store shows it only at the first write.

        Raises:
            StorageUnwritable: The file system is full or read-only.
            PermissionError: The user may not write there.
        """
        if is_local(self):
            check_writable(self.url)

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a file atomically: readers see the previous content or all of `data`."""
        self._backend.write_bytes(self._full(path), data)

    def create_bytes(self, path: str, data: bytes) -> bool:
        """Write a file atomically unless one exists at `path`.

        Returns:
            True if this call created the file. Of several concurrent callers only one gets True, except in stores
            without conditional writes, where callers at the same instant may all get True.
        """
        return self._backend.create_bytes(self._full(path), data)

    def write_file(self, path: str, source: str | os.PathLike[str]) -> None:
        """Copy the local file `source` to `path` atomically, like `write_bytes`."""
        self._backend.write_file(self._full(path), source)

    def delete(self, path: str) -> None:
        """Delete the file at `path` if it exists."""
        full = self._full(path)
        with suppress(FileNotFoundError):
            self._backend.delete(full)

    def _full(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path!r} is not a path below {self.redacted}: it must be relative and without '..'")
        return join_url(self.url, path)


def is_local(storage: Storage) -> bool:
    """Return True if a folder is on this machine."""
    return not scheme(storage.url)


def delete_files(storage: Storage, suffixes: tuple[str, ...]) -> None:
    """Delete the files of a folder whose names end in one of `suffixes`, and the folder if it is then empty."""
    for path, _ in storage.files():
        if path.endswith(suffixes):
            storage.delete(path)
    if is_local(storage):
        with suppress(OSError):  # it holds other files, or another process has deleted it
            os.rmdir(storage.url)


def is_within(inner: Storage, outer: Storage) -> bool:
    """Return True if the place `inner` is the folder `outer` or lies in it, also through links and other URLs of it."""
    if is_local(inner) or is_local(outer):
        return is_local(inner) and is_local(outer) and is_below(inner.url, outer.url)
    return path_below(inner.url, outer.url) is not None


def _storage(url: str, options: Mapping[str, Any] | None, retry_timeout: float) -> Storage:
    return Storage(url=url, options=options, retry_timeout=retry_timeout)
