"""A folder in a store that fsspec can open. Each request has a time limit and is retried after transient errors."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any, TypeVar

from pipeline.storage import denied
from pipeline.storage.atomic_write import is_temporary
from pipeline.storage.backend import SMALL_BYTES, FolderListing, ListedFile, SkippedEntry
from pipeline.storage.filesystems import (
    find_all,
    has_atomic_put,
    open_filesystem,
    path_below,
    put_and_rename,
    read_range,
    read_starts,
    time_limit,
)
from pipeline.storage.redaction import redact
from pipeline.storage.remote_file import BLOCK_BYTES, RemoteFile
from pipeline.storage.retries import StoreUnavailable, http_status, with_retries
from pipeline.storage.unwritable import StorageUnwritable
from pipeline.storage.urls import SourceError, join_url, scheme

FILES_PER_BATCH = 1024
"""Small files that are read by one call of fsspec."""

_VERSION_FIELDS = (
    "ETag",
    "etag",
    "md5Hash",
    "blob_id",
    "generation",
    "LastModified",
    "last_modified",
    "updated",
    "mtime",
    "created",
)
"""Fields of a listing that identify a version of a file, the best first: digests of the content, then times."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFolder:
    """The `FolderBackend` of a store behind a URL.

    Attributes:
        root: The URL of the root folder.
        options: The storage options for fsspec.
        retry_timeout: Seconds during which a request is retried.
    """

    root: str
    options: Mapping[str, Any]
    retry_timeout: float

    def list_files(self, folder: str, depth: int | None, *, with_versions: bool = False) -> list[ListedFile]:
        """List the files below `folder`, without temporary files."""
        try:
            return [self._listed(path, entry, with_versions) for path, entry in self._entries(folder, depth)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def survey(self, depth: int | None, without: Sequence[str]) -> FolderListing:
        """List the files below the root folder, and skip what cannot be listed."""
        left_out = [path for folder in without if (path := path_below(folder, self.root)) is not None]
        skipped: dict[str, SkippedEntry] = {}
        try:
            files = [self._listed(path, entry, False) for path, entry in self._entries(self.root, depth, skipped)]
        except (FileNotFoundError, NotADirectoryError):
            return FolderListing([], [])
        prefixes = tuple(f"{path}/" if path else "" for path in left_out)
        return FolderListing([file for file in files if not file.path.startswith(prefixes)], list(skipped.values()))

    def names(self, folder: str) -> list[str]:
        """Return the names of the files and folders directly in `folder`."""
        try:
            entries = self._request(folder, lambda fs: fs.ls(folder, detail=False))
        except FileNotFoundError:
            return []
        root = open_filesystem(folder, self.options)[1]
        # Some stores list an empty object that has the name of the folder itself.
        return [entry.rstrip("/").rpartition("/")[2] for entry in entries if entry.rstrip("/") != root]

    def stat(self, path: str) -> ListedFile:
        """Return the size and the version of a file."""
        entry = self._info(path)
        if entry is None or entry.get("type") == "directory":
            raise FileNotFoundError(redact(path))
        # Pages that list files over http say nothing about versions, and mirrors may differ in their tags.
        has_version = scheme(self.root) not in ("http", "https")
        relative = path.removeprefix(self.root).lstrip("/")
        return ListedFile(relative, int(entry.get("size") or 0), _version(entry) if has_version else "")

    def exists(self, path: str) -> bool:
        """Return True if a file or a folder exists at `path`."""
        return self._info(path) is not None

    def is_file(self, path: str) -> bool:
        """Return True if a file exists at `path`."""
        return (self._info(path) or {}).get("type") == "file"

    def open(self, path: str, *, block_bytes: int = BLOCK_BYTES) -> IO[bytes]:
        """Open a file for binary reading in ranges, each of which is retried after transient errors."""
        info = self._info(path)
        if info is None or info.get("type") == "directory":
            raise FileNotFoundError(redact(path))
        if info.get("size") is None or not info.get("partial", True):  # an http server without range requests
            return self._request(path, lambda fs: fs.open(path, "rb"))
        size = int(info["size"])

        def fetch(start: int, end: int) -> bytes:
            return self._request(path, lambda fs: read_range(fs, path, start, min(end, size)))

        return io.BufferedReader(RemoteFile(fetch, size, block_bytes=block_bytes), min(block_bytes, 2**20))

    def read_bytes(self, path: str) -> bytes:
        """Return the content of a file."""
        with self.open(path) as file:  # in ranges, each with its own time limit, since the file may be large
            return file.read()

    def read_small(self, paths: Sequence[str]) -> list[bytes | None]:
        """Return the first `SMALL_BYTES` of many files, with None for each that cannot be opened.

        Sends one request per file. fsspec runs them concurrently: with a thread for each request, every thread would
        need its own filesystem and so its own session.
        """
        contents: list[bytes | None] = []
        for start in range(0, len(paths), FILES_PER_BATCH):
            batch = list(paths[start : start + FILES_PER_BATCH])
            contents += self._request(batch[0], lambda fs, batch=batch: read_starts(fs, batch, SMALL_BYTES))  # type: ignore[misc]
        return contents

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a file atomically, replacing an existing one."""
        self._put(path, lambda fs, target: fs.pipe_file(target, data, **time_limit(fs, len(data))))

    def create_bytes(self, path: str, data: bytes) -> bool:
        """Write a file atomically unless it exists. Return True if this call created it."""

        def put(fs: Any, target: str) -> None:
            try:
                fs.pipe_file(target, data, mode="create", **time_limit(fs, len(data)))
            except (NotImplementedError, TypeError):
                # The filesystem cannot create exclusively (NotImplementedError), or takes no `mode` (TypeError). Two
                # creators at the same instant may then both succeed.
                fs.pipe_file(target, data)
            except OSError as error:
                if http_status(error) == 412:  # precondition failed
                    raise FileExistsError(redact(target)) from error
                raise

        if self._info(path) is not None:
            return False
        try:
            self._put(path, put)
        except FileExistsError:
            # This call may have written the file, if the answer was lost and the request was retried.
            return self.read_bytes(path) == data
        return True

    def write_file(self, path: str, source: str | os.PathLike[str]) -> None:
        """Copy a local file to `path` atomically, replacing an existing file."""
        local = os.fspath(source)
        size = os.path.getsize(local)
        self._put(path, lambda fs, target: fs.put_file(local, target, **time_limit(fs, size)))

    def delete(self, path: str) -> None:
        """Delete a file."""
        self._request(path, lambda fs: fs.rm_file(path))

    def _entries(
        self, folder: str, depth: int | None, skipped: dict[str, SkippedEntry] | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the path relative to the root and the fsspec entry of each file below `folder`.

        Args:
            folder: A folder.
            depth: The number of folder levels to list, or None for all of them.
            skipped: Receives what could not be listed, by path. None raises the error instead.
        """
        root = open_filesystem(self.root, self.options)[1]
        start = root + folder.removeprefix(self.root)
        # Without a time limit: listing millions of files takes many requests, and the library limits each of them.
        denied: list[str] | None = None if skipped is None else []
        entries = self._request(folder, lambda fs: find_all(fs, start, depth, denied))
        for name, entry in entries.items():
            path = name.removeprefix(root).lstrip("/")
            if not path or is_temporary(path):
                continue
            if entry.get("type") == "file":
                yield path, entry
            elif skipped is not None and entry.get("type") not in ("file", "directory"):
                kind = "link" if entry.get("type") == "link" else "special file"
                skipped[path] = SkippedEntry(path, kind, hides_files=False)
        for name in denied or ():
            path = name.removeprefix(root).lstrip("/")
            if skipped is not None:
                skipped[path] = SkippedEntry(path, "unreadable folder", hides_files=True)

    def _listed(self, path: str, entry: dict[str, Any], with_versions: bool) -> ListedFile:
        if with_versions and entry.get("size") is None:  # pages that list files over http give only their names
            entry = self._info(join_url(self.root, path)) or {}
        return ListedFile(path, int(entry.get("size") or 0), _version(entry))

    def _info(self, path: str) -> dict[str, Any] | None:
        """Return the fsspec entry of a file or folder, or None if nothing exists at `path`."""
        # fsspec's `exists` and `isfile` are not used: they report a refused connection as a missing file.
        try:
            return self._request(path, lambda fs: fs.info(path, **time_limit(fs, 0)))
        except FileNotFoundError:
            return None

    def _put(self, path: str, put: Callable[[Any, str], None]) -> None:
        """Upload a file so that it appears under its name only when it is complete."""
        is_atomic = has_atomic_put(self.root)
        self._request(path, lambda fs: put(fs, path) if is_atomic else put_and_rename(fs, path, put))

    def _request(self, path: str, send: Callable[[Any], Answer]) -> Answer:
        """Return what `send` returns for the filesystem, with retries; every error is an OSError with the URL."""
        fs, _ = open_filesystem(self.root, self.options)
        shown = redact(path)
        try:
            return with_retries(lambda: send(fs), shown, self.retry_timeout)
        except FileNotFoundError:
            raise FileNotFoundError(shown) from None
        except (StoreUnavailable, FileExistsError, NotADirectoryError, IsADirectoryError):
            raise
        except PermissionError as error:
            raise PermissionError(
                f"{shown}: access is denied ({redact(str(error))}){denied.advice(error, path)}"
            ) from error
        except TypeError as error:
            # The http filesystem passes its options to each request, and an unknown one fails only there.
            given = ", ".join(self.options) or "none"
            raise SourceError(f"{shown}: {redact(str(error))} (storage options given: {given})") from error
        except Exception as error:  # every library raises errors of its own kind
            if http_status(error) == 507:
                raise StorageUnwritable(f"{shown}: the store has no space left ({redact(str(error))})") from error
            raise OSError(f"{shown}: {type(error).__name__}: {redact(str(error))}") from error


def _version(entry: Mapping[str, Any]) -> str:
    """Return the version of a file from its fsspec entry, in the same form for an entry of a listing and of one file.

    Stores quote a tag in the answer about one file and not always in a listing, and write a time in several types.
    """
    value = next((entry[name] for name in _VERSION_FIELDS if entry.get(name)), "")
    return str(value.timestamp()) if isinstance(value, datetime) else str(value).removeprefix("W/").strip('"')
