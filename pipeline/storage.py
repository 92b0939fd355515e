"""The one place that touches fsspec: a folder at a URL, read and written.

Two promises are kept for the rest of the pipeline: a file appears under its name only when it is whole, and no secret
of a URL or of the storage options reaches a message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from pipeline import localfiles

# One PUT or one completed multipart upload is atomic here, and folders need not be made.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "tos", "hf", "memory"}
# Filesystems that wrap another one, or act on what a file tells them to do: nothing that a data set needs.
_REFUSED = {
    *("pipe", "cmd", "exec", "shell", "reference", "generic", "dask", "asyncwrapper", "async_wrapper", "asynclocal"),
    *("cached", "blockcache", "filecache", "simplecache", "dir"),
}
_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
    "adl": "azure",
}
_READ_BLOCK_BYTES = 2**24  # large ranges: many small GETs are what object stores throttle

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^/\s@]*(?:@[^/\s@]*)*)@")
_QUERY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s?'\"<>]*)\?[^\s?'\"<>]*=[^\s'\"<>]*")
_SECRET_OPTION = re.compile(r"key|secret|token|pass|cred|sas|sign|auth|connection", re.IGNORECASE)


class SourceError(ValueError):
    """A mistake in what the user named: the message holds the URL, what was found, and what to do."""


def redact(text: str, options: Mapping[str, Any] | None = None) -> str:
    """``text`` without the user names, passwords and query strings (signatures) of the URLs in it.

    Args:
        text: a URL, or any message that may hold some.
        options: storage options; the values of those that hold credentials (by their names) are masked as well.
    """

    def without_userinfo(match: re.Match[str]) -> str:
        # In abfs://container@account the part before @ is an address, not a secret.
        return match[0] if match[1].startswith(("abfs", "az")) and ":" not in match[2] else match[1]

    text = _QUERY.sub(r"\1", _USERINFO.sub(without_userinfo, text))
    for secret in sorted(_secrets(options or {}), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif isinstance(value, str) and len(value) >= 4 and _SECRET_OPTION.search(str(name)):
            yield value


def scheme(url: str) -> str:
    """The protocol of a URL in small letters, "" for a local path. Refuses what runs a command or loads code.

    Raises:
        SourceError: for ``pipe:`` and its like, and for chained URLs (``zip://…::s3://…``).
    """
    match = _SCHEME.match(url)
    name = match[1].lower() if match else ""
    refused = name if name in _REFUSED else next((p for p in _REFUSED if url.lower().startswith(p + ":")), "")
    if refused:
        raise SourceError(
            f"{refused}: URLs are refused, since they run commands or wrap other stores. "
            "Name the data by a path or a plain URL such as s3://bucket/folder"
        )
    if "::" in url and "://" in url:
        raise SourceError(
            f"{redact(url)}: chained URLs (with '::') are not supported; name the store that holds the files"
        )
    return "" if name in ("file", "local") else name


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """A root folder at a URL, or a local path. Cheap to pickle: the filesystem is made in the process that uses it.

    Attributes:
        url: the folder. A local path is made absolute, so that it means the same in every process.
        options: what fsspec is given to open it (credentials, endpoint). Never shown.

    All paths below are relative to ``url`` and use ``/``. Errors of the store (``OSError``) pass through unchanged.
    """

    url: str
    options: Mapping[str, Any] | None = field(default=None, repr=False, hash=False)

    def __post_init__(self) -> None:
        url = self.url
        if not url:
            raise SourceError("an empty path or URL was given; name a folder or a URL such as s3://bucket/folder")
        if not scheme(url):
            url = os.path.abspath(os.path.expanduser(_SCHEME.sub("", url)))
        # "memory://" and "s3://" name the root of a store; their slashes stay.
        stripped = url.rstrip("/")
        object.__setattr__(self, "url", stripped if stripped and not stripped.endswith(":") else url)

    def __repr__(self) -> str:
        return f"Storage({self.redacted!r})"

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
        fs, root = self._remote()
        folder = f"{root}/{prefix}" if prefix else root
        try:
            entries = fs.find(folder, maxdepth=depth, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        listed = []
        for name, entry in entries.items():
            path = name.removeprefix(root).lstrip("/")
            if path and entry.get("type") == "file" and not localfiles.is_temporary(path):
                listed.append((path, int(entry.get("size") or 0)))
        return sorted(listed)

    def exists(self, path: str = "") -> bool:
        """Whether there is a file or a folder at ``path``."""
        return os.path.exists(self._full(path)) if self._is_local else self._info(path) is not None

    def is_file(self, path: str) -> bool:
        """Whether there is a file at ``path``."""
        if self._is_local:
            return os.path.isfile(self._full(path))
        return (self._info(path) or {}).get("type") == "file"

    def open(self, path: str) -> IO[bytes]:
        """The file at ``path`` for binary reading from its start on; missing files raise ``FileNotFoundError``."""
        if self._is_local:
            return open(self._full(path), "rb")
        return self._remote()[0].open(self._full(path), "rb", block_size=_READ_BLOCK_BYTES)

    def read_bytes(self, path: str) -> bytes:
        """The whole content of the file at ``path``."""
        with self.open(path) as file:
            return file.read()

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write ``data`` to ``path``: the name holds either what it held before or all of ``data``, never a part."""
        if self._is_local:
            localfiles.write_atomically(self._full(path), data)
            return
        self._upload(path, lambda fs, target: fs.pipe_file(target, data))

    def write_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        """Write a copy of the file at ``local_path`` to ``path``, as ``write_bytes`` does."""
        if self._is_local:
            with open(local_path, "rb") as source:
                localfiles.write_atomically(self._full(path), source)
            return
        self._upload(path, lambda fs, target: fs.put_file(os.fspath(local_path), target))

    def delete(self, path: str) -> None:
        """Remove the file at ``path``; a missing one is fine."""
        with suppress(FileNotFoundError):
            if self._is_local:
                os.remove(self._full(path))
            else:
                self._remote()[0].rm_file(self._full(path))

    def _info(self, path: str) -> dict[str, Any] | None:
        # Not fsspec's exists and isfile, which take a refused connection for a missing file.
        try:
            return self._remote()[0].info(self._full(path))
        except FileNotFoundError:
            return None

    def _upload(self, path: str, put: Any) -> None:
        fs, _ = self._remote()
        target = self._full(path)
        if scheme(self.url) in _OBJECT_STORES:
            put(fs, target)
            return
        # sftp, hdfs, smb …: a half-written file would be visible under its name.
        fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        aside = localfiles.temporary_name(target)
        try:
            put(fs, aside)
            if fs.exists(target):
                fs.rm_file(target)
            fs.mv(aside, target)
        except BaseException:
            if fs.exists(aside):
                fs.rm_file(aside)
            raise

    @property
    def _is_local(self) -> bool:
        return not scheme(self.url)

    def _full(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"{path!r} is not a path below {self.redacted}: it must be relative and without '..'")
        return f"{self.url if self.url.endswith('/') else self.url + '/'}{path}" if path else self.url

    def _remote(self) -> tuple[Any, str]:
        """The filesystem, with nothing remembered of earlier listings, and the root as it names it.

        fsspec keeps one instance per process and thread for the same options, so this is cheap, and safe after a fork.
        """
        import fsspec

        name = scheme(self.url)
        try:
            fs, root = fsspec.core.url_to_fs(self.url, **(self.options or {}))
        except ImportError as error:
            extra = _EXTRAS.get(name)
            remedy = f"pip install 'diffseg-pipeline[{extra}]'" if extra else str(error)
            raise SourceError(
                f"{self.redacted}: the package that opens {name}:// is not installed; {remedy}"
            ) from error
        except (ValueError, TypeError) as error:  # TypeError: an option that the filesystem does not know
            raise SourceError(f"{self.redacted}: cannot open {name}://: {redact(str(error), self.options)}") from error
        fs.invalidate_cache()
        return fs, root.rstrip("/")
