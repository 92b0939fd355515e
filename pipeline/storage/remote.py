"""A folder in a store that fsspec knows: requests have deadlines, are repeated patiently, and fail naming the URL."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from pipeline.storage import local as localfiles
from pipeline.storage.redaction import redact
from pipeline.storage.remote_file import RemoteFile
from pipeline.storage.retries import ShortRead, StoreUnavailable, http_status, is_passing, patiently
from pipeline.storage.urls import SourceError, scheme

# One PUT or one completed multipart upload is atomic here, and folders need not be made.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "tos", "hf", "memory"}
_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "azure"),
}
# botocore's own attempts would hide a store that is away, and multiply with those made here.
_S3_DEFAULTS = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
_DEFAULTS: dict[str, Mapping[str, Any]] = {"s3": _S3_DEFAULTS, "s3a": _S3_DEFAULTS}

REQUEST_SECONDS = 60.0
"""A request that takes longer than this, and a second for each ``SLOWEST`` bytes, has failed."""
SLOWEST = 2**20
AT_ONCE, CONNECTIONS = 1024, 32
"""Small files that are read in one go, and requests for them that are under way at a time."""

# What a listing tells of a file's version: its content's tag where there is one, else when it was written.
_TAGS = (
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

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFolder:
    """The folder at ``url``; the methods take full URLs below it. Errors: see ``Storage``."""

    url: str
    options: Mapping[str, Any]
    patience: float

    def files(self, folder: str, depth: int | None) -> list[tuple[str, int]]:
        """(path relative to ``url``, size in bytes) of every file below ``folder``."""
        return [(path, int(entry.get("size") or 0)) for path, entry in self._entries(folder, depth)]

    def versions(self, folder: str, depth: int | None) -> list[tuple[str, int, str]]:
        """As ``files``, with what tells a file's version from another; "" where the store says nothing of it."""
        found = []
        for path, entry in self._entries(folder, depth):
            if entry.get("size") is None:  # the pages that list files over http
                entry = self.info(f"{self.url}/{path}") or {}
            tag = next((str(entry[name]) for name in _TAGS if entry.get(name)), "")
            found.append((path, int(entry.get("size") or 0), tag))
        return found

    def _entries(self, folder: str, depth: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
        root = self._filesystem()[1]
        start = root + folder.removeprefix(self.url)
        # No deadline of its own: a listing of millions is many requests, each of which has the library's.
        entries = self._ask(
            folder, lambda fs: fs.find(start, detail=True) if depth is None else _listed(fs, start, depth)
        )
        paths = ((name.removeprefix(root).lstrip("/"), entry) for name, entry in entries.items())
        return ((path, entry) for path, entry in paths if path and entry.get("type") == "file")

    def info(self, url: str) -> dict[str, Any] | None:
        """What the store says of a file or folder, None where there is nothing."""
        # Not fsspec's exists and isfile, which take a refused connection for a missing file.
        try:
            return self._ask(url, lambda fs: fs.info(url, **_within(fs, 0)))
        except FileNotFoundError:
            return None

    def open(self, url: str) -> IO[bytes]:
        """For binary reading, in ranges that are asked for again where they fail."""
        info = self.info(url)
        if info is None or info.get("type") == "directory":
            raise FileNotFoundError(redact(url))
        if info.get("size") is None or not info.get("partial", True):  # an http server that knows no ranges
            return self._ask(url, lambda fs: fs.open(url, "rb"))
        size = int(info["size"])

        def fetch(start: int, end: int) -> bytes:
            return self._ask(url, lambda fs: _range(fs, url, start, min(end, size)))

        return io.BufferedReader(RemoteFile(fetch, size), 2**20)

    def read(self, url: str) -> bytes:
        """All of a file that fits in memory."""
        with self.open(url) as file:  # in ranges, so that the deadline of a request is not that of a large file
            return file.read()

    def read_starts(self, urls: Sequence[str], size: int) -> list[bytes | None]:
        """The first ``size`` bytes of many files, None for those that are gone or forbidden; one request for each.

        Not threads with a request each: every thread would have a filesystem, and so a session, of its own.
        """
        found: list[bytes | None] = []
        for start in range(0, len(urls), AT_ONCE):
            part = list(urls[start : start + AT_ONCE])
            found += self._ask(part[0], lambda fs, part=part: _starts(fs, part, size))  # type: ignore[misc]
        return found

    def write(self, url: str, data: bytes) -> None:
        """Put ``data`` in place in one step."""
        self._put(url, lambda fs, target: fs.pipe_file(target, data, **_within(fs, len(data))))

    def create(self, url: str, data: bytes) -> bool:
        """As ``write``, unless there is a file already; whether it was written."""

        def put(fs: Any, target: str) -> None:
            try:
                fs.pipe_file(target, data, mode="create", **_within(fs, len(data)))
            except (NotImplementedError, TypeError):
                fs.pipe_file(target, data)
            except OSError as error:
                if http_status(error) == 412:  # precondition failed
                    raise FileExistsError(redact(target)) from error
                raise

        if self.info(url) is not None:
            return False
        try:
            self._put(url, put)
        except FileExistsError:
            # It may be our own: a request that was repeated since its answer had been lost.
            return self.read(url) == data
        return True

    def upload(self, url: str, local: str) -> None:
        """Put a copy of a local file in place in one step."""
        size = os.path.getsize(local)
        self._put(url, lambda fs, target: fs.put_file(local, target, **_within(fs, size)))

    def delete(self, url: str) -> None:
        """Remove a file; raises FileNotFoundError where there is none."""
        self._ask(url, lambda fs: fs.rm_file(url))

    def _put(self, url: str, put: Callable[[Any, str], None]) -> None:
        in_one_step = scheme(self.url) in _OBJECT_STORES
        self._ask(url, lambda fs: put(fs, url) if in_one_step else _put_aside(fs, url, put))

    def _ask(self, url: str, request: Callable[[Any], Answer]) -> Answer:
        """The answer of the store, waited for; every error as an ``OSError`` that names the URL."""
        fs, _ = self._filesystem()
        shown = redact(url)
        try:
            return patiently(lambda: request(fs), shown, self.patience)
        except FileNotFoundError:
            raise FileNotFoundError(shown) from None
        except (StoreUnavailable, FileExistsError, NotADirectoryError, IsADirectoryError):
            raise
        except PermissionError as error:
            raise PermissionError(f"{shown}: access is denied ({redact(str(error))})") from error
        except TypeError as error:
            # http:// hands its options to each request, and only there sees that it does not know one.
            given = ", ".join(self.options) or "none"
            raise SourceError(f"{shown}: {redact(str(error))} (storage options given: {given})") from error
        except Exception as error:  # each library has errors of its own
            raise OSError(f"{shown}: {type(error).__name__}: {redact(str(error))}") from error

    def _filesystem(self) -> tuple[Any, str]:
        """The filesystem, with nothing remembered of earlier listings, and the root as it names it.

        fsspec keeps one instance per process and thread for the same options, so this is cheap, and safe after a fork.
        """
        import fsspec

        name, shown = scheme(self.url), redact(self.url)
        try:
            fs, root = fsspec.core.url_to_fs(self.url, **{**_DEFAULTS.get(name, {}), **self.options})
        except ImportError as error:
            extra = _EXTRAS.get(name)
            remedy = f"pip install 'diffseg-pipeline[{extra}]'" if extra else str(error)
            raise SourceError(f"{shown}: the package that opens {name}:// is not installed; {remedy}") from error
        except (ValueError, TypeError) as error:  # TypeError: an option that the filesystem does not know
            raise SourceError(f"{shown}: cannot open {name}://: {redact(str(error))}") from error
        fs.invalidate_cache()
        return fs, root.rstrip("/")


def _listed(fs: Any, folder: str, depth: int) -> dict[str, dict[str, Any]]:
    """What the store says of each file down to this depth, by its full name.

    Not fsspec's find: with a depth it leaves out every folder that the store fails to list, and says nothing of it.
    """
    found: dict[str, dict[str, Any]] = {}
    folders = [folder]
    for _ in range(depth):
        entries: dict[str, dict[str, Any]] = {}
        for name in folders:
            with suppress(FileNotFoundError):  # it has just gone
                entries |= {entry["name"]: entry for entry in fs.ls(name, detail=True)}
        found |= {name: entry for name, entry in entries.items() if entry["type"] == "file"}
        folders = [name for name, entry in entries.items() if entry["type"] == "directory" and name not in folders]
    return found


def _within(fs: Any, size: int) -> dict[str, float]:
    """The deadline of a request for ``size`` bytes, for filesystems that can keep one."""
    return {"timeout": REQUEST_SECONDS + size / SLOWEST} if getattr(fs, "async_impl", False) else {}


def _range(fs: Any, url: str, start: int, end: int) -> bytes:
    data: bytes = fs.cat_file(url, start=start, end=end, **_within(fs, end - start))
    if len(data) != end - start:
        raise ShortRead(f"{len(data)} bytes came of the {end - start} from {start} on")
    return data


def _starts(fs: Any, urls: list[str], size: int) -> list[bytes | None]:
    # Without `batch_size` some filesystems would ask for all at once, and some for one after another.
    several = {"batch_size": CONNECTIONS} if getattr(fs, "async_impl", False) else {}
    answers = fs.cat_ranges(urls, [0] * len(urls), [size] * len(urls), on_error="return", **several)
    for answer in answers:
        if isinstance(answer, BaseException) and is_passing(answer):
            raise answer
    return [None if isinstance(answer, BaseException) else answer for answer in answers]


def _put_aside(fs: Any, url: str, put: Callable[[Any, str], None]) -> None:
    # sftp, hdfs, smb …: a half-written file would be visible under its name.
    fs.makedirs(url.rsplit("/", 1)[0], exist_ok=True)
    aside = localfiles.temporary_name(url)
    try:
        put(fs, aside)
        if fs.exists(url):
            fs.rm_file(url)
        fs.mv(aside, url)
    except BaseException:
        if fs.exists(aside):
            fs.rm_file(aside)
        raise
