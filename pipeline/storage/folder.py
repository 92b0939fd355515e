"""A folder at a URL or on this machine, read and written alike.

Three promises are kept for the rest of the pipeline: a file appears under its name only when it is whole, a store that
is busy or away for a while is waited for, and no secret of a URL or of the storage options reaches a message.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import IO, Any

from pipeline.storage import local as localfiles
from pipeline.storage.redaction import redact, remember
from pipeline.storage.remote import RemoteFolder
from pipeline.storage.retries import PATIENCE_SECONDS
from pipeline.storage.urls import SourceError, local_path, scheme

SMALL_BYTES = 2**20
"""Of a file that can be read together with many others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """A root folder at a URL, or a local path. Cheap to pickle: the filesystem is made in the process that uses it.

    Attributes:
        url: the folder. A local path is made absolute, so that it means the same in every process.
        options: what fsspec is given to open it (credentials, endpoint). Never shown.
        patience: seconds for which a store may fail to answer; then ``StoreUnavailable`` is raised.

    All paths below are relative to ``url`` and use ``/``. Errors are ``OSError``: ``FileNotFoundError`` and
    ``PermissionError`` as for local files, ``StoreUnavailable``, or another; the message names the URL.
    """

    url: str
    options: Mapping[str, Any] | None = field(default=None, repr=False, hash=False)
    patience: float = field(default=PATIENCE_SECONDS, repr=False)

    def __post_init__(self) -> None:
        url = self.url
        if not url:
            raise SourceError("an empty path or URL was given; name a folder or a URL such as s3://bucket/folder")
        if not scheme(url):
            url = os.path.abspath(os.path.expanduser(local_path(url)))
        # "memory://" and "s3://" name the root of a store; their slashes stay.
        stripped = url.rstrip("/")
        object.__setattr__(self, "url", stripped if stripped and not stripped.endswith(":") else url)
        remember(self.options)

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor, so that the secrets are known in the other process as well.
        return _storage, (self.url, self.options, self.patience)

    def __repr__(self) -> str:
        return f"Storage({self.redacted!r})"

    def at(self, url: str) -> Storage:
        """Another folder, opened with the same options and patience."""
        return replace(self, url=url)

    @property
    def redacted(self) -> str:
        """The URL as it may be shown."""
        return redact(self.url)

    def joined(self, path: str) -> str:
        """The full URL of ``path`` as it may be shown."""
        return redact(self._full(path))

    def files(self, prefix: str = "", *, depth: int | None = None) -> list[tuple[str, int]]:
        """Every file below ``prefix``: (path relative to ``url``, size in bytes), sorted by path.

        With ``depth`` 1 only those in the folder itself, and so on; None is without limit. [] when the folder does not
        exist. Files that are still being written are not listed.
        """
        if self._is_local:
            found = localfiles.files(self._full(prefix), depth)
            return sorted((f"{prefix}/{path}" if prefix else path, size) for path, size in found)
        with suppress(FileNotFoundError, NotADirectoryError):
            listed = self._remote.files(self._full(prefix), depth)
            return sorted((path, size) for path, size in listed if not localfiles.is_temporary(path))
        return []

    def versions(self, *, depth: int | None = None) -> list[tuple[str, int, str]]:
        """As ``files``, each with a text that is another when the file's content is, as far as the store tells."""
        if self._is_local:
            return [(path, size, str(os.stat(self._full(path)).st_mtime_ns)) for path, size in self.files(depth=depth)]
        with suppress(FileNotFoundError, NotADirectoryError):
            return sorted(self._remote.versions(self.url, depth))
        return []

    def exists(self, path: str = "") -> bool:
        """Whether there is a file or a folder at ``path``."""
        full = self._full(path)
        return os.path.exists(full) if self._is_local else self._remote.info(full) is not None

    def is_file(self, path: str) -> bool:
        """Whether there is a file at ``path``."""
        full = self._full(path)
        return os.path.isfile(full) if self._is_local else (self._remote.info(full) or {}).get("type") == "file"

    def open(self, path: str) -> IO[bytes]:
        """The file at ``path`` for binary reading from its start on; missing files raise ``FileNotFoundError``."""
        full = self._full(path)
        return open(full, "rb") if self._is_local else self._remote.open(full)

    def read_bytes(self, path: str) -> bytes:
        """The whole content of the file at ``path``."""
        full = self._full(path)
        if not self._is_local:
            return self._remote.read(full)
        with open(full, "rb") as file:
            return file.read()

    def read_small(self, paths: Sequence[str]) -> list[bytes | None]:
        """The contents of many files of at most ``SMALL_BYTES``, None for those that are gone or cannot be opened."""
        if not self._is_local:
            return self._remote.read_starts([self._full(path) for path in paths], SMALL_BYTES)
        return [localfiles.read_if_possible(self._full(path)) for path in paths]

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write ``data`` to ``path``: the name holds either what it held before or all of ``data``, never a part."""
        full = self._full(path)
        if self._is_local:
            localfiles.write_atomically(full, data)
        else:
            self._remote.write(full, data)

    def create_bytes(self, path: str, data: bytes) -> bool:
        """Write ``data`` to ``path`` unless there is a file already; of several writers one succeeds. Whether it did.

        Where a store knows no conditional writes, two writers in the same instant may both be told True.
        """
        full = self._full(path)
        return localfiles.create_atomically(full, data) if self._is_local else self._remote.create(full, data)

    def write_file(self, path: str, source: str | os.PathLike[str]) -> None:
        """Write a copy of the local file ``source`` to ``path``, as ``write_bytes`` does."""
        full = self._full(path)
        if not self._is_local:
            self._remote.upload(full, os.fspath(source))
            return
        with open(source, "rb") as file:
            localfiles.write_atomically(full, file)

    def delete(self, path: str) -> None:
        """Remove the file at ``path``; a missing one is fine."""
        full = self._full(path)
        with suppress(FileNotFoundError):
            if self._is_local:
                os.remove(full)
            else:
                self._remote.delete(full)

    @property
    def _is_local(self) -> bool:
        return not scheme(self.url)

    @property
    def _remote(self) -> RemoteFolder:
        return RemoteFolder(url=self.url, options=self.options or {}, patience=self.patience)

    def _full(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path!r} is not a path below {self.redacted}: it must be relative and without '..'")
        return f"{self.url if self.url.endswith('/') else self.url + '/'}{path}" if path else self.url


def _storage(url: str, options: Mapping[str, Any] | None, patience: float) -> Storage:
    return Storage(url=url, options=options, patience=patience)
