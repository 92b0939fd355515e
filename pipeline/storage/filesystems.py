"""Open the fsspec filesystem of a URL, and send it requests that fsspec does not offer in this form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from pipeline.storage.atomic_write import temporary_name
from pipeline.storage.redaction import redact
from pipeline.storage.retries import ShortRead, is_transient
from pipeline.storage.s3_times import use_fast_times
from pipeline.storage.urls import SourceError, scheme

REQUEST_SECONDS = 60.0
"""Time limit of a request, to which the time of its bytes at `MIN_BYTES_PER_SECOND` is added."""
MIN_BYTES_PER_SECOND = 2**20
"""A transfer that is slower than this has failed."""
CONNECTIONS = 32
"""Requests for small files that are in flight at the same time."""

# In these stores one PUT or one completed multipart upload is atomic, and folders need not be created.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "tos", "hf", "memory"}
_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "azure"),
}
# botocore's own retries would hide an outage of the store, and multiply with the retries made here.
_S3_DEFAULTS = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
_DEFAULTS: dict[str, Mapping[str, Any]] = {"s3": _S3_DEFAULTS, "s3a": _S3_DEFAULTS}


def open_filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Open the filesystem of a URL.

    fsspec keeps one instance per process, thread and set of options, so this is cheap, and safe after a fork.

    Args:
        url: The root folder.
        options: The storage options that fsspec passes to the filesystem.

    Returns:
        The filesystem, without cached listings, and the root folder as this filesystem writes it.

    Raises:
        SourceError: The package for this kind of store is not installed, or it rejects the URL or an option.
    """
    import fsspec

    name, shown = scheme(url), redact(url)
    try:
        fs, root = fsspec.core.url_to_fs(url, **{**_DEFAULTS.get(name, {}), **options})
    except ImportError as error:
        extra = _EXTRAS.get(name)
        remedy = f"pip install 'diffseg-pipeline[{extra}]'" if extra else str(error)
        raise SourceError(f"{shown}: the package that opens {name}:// is not installed; {remedy}") from error
    except (ValueError, TypeError) as error:  # TypeError: the filesystem does not know an option
        raise SourceError(f"{shown}: cannot open {name}://: {redact(str(error))}") from error
    if name in ("s3", "s3a"):
        use_fast_times()
    fs.invalidate_cache()
    return fs, root.rstrip("/")


def has_atomic_put(url: str) -> bool:
    """Return True if an upload to this kind of store becomes visible only when it is complete."""
    return scheme(url) in _OBJECT_STORES


def time_limit(fs: Any, size: int) -> dict[str, float]:
    """Return the keyword arguments that limit the time of a request for `size` bytes, where `fs` accepts them."""
    if not getattr(fs, "async_impl", False):
        return {}
    return {"timeout": REQUEST_SECONDS + size / MIN_BYTES_PER_SECOND}


def path_below(inner: str, outer: str) -> str | None:
    """Return the path of a place below a folder of the same store, "" for the folder itself, None if it is not below.

    Two names of one store, such as s3:// and s3a://, count as the same. Stores other than object stores are told apart
    by their host as well.
    """
    inner_store, inner_parts = _place(inner)
    outer_store, outer_parts = _place(outer)
    if inner_store != outer_store or inner_parts[: len(outer_parts)] != outer_parts:
        return None
    return "/".join(inner_parts[len(outer_parts) :])


def _place(url: str) -> tuple[tuple[str, str], list[str]]:
    """Return the store and the parts of the path of a URL."""
    from fsspec.core import split_protocol
    from fsspec.registry import get_filesystem_class

    try:
        kind = get_filesystem_class(scheme(url))
        path = str(kind._strip_protocol(url))
    except (ImportError, ValueError):  # the package of the store is not installed; opening it says so
        return (scheme(url), ""), split_protocol(url)[1].split("/")
    host = "" if has_atomic_put(url) else (urlsplit(url).hostname or "")
    return (kind.__name__, host), [part for part in split_protocol(path)[1].split("/") if part]


def find_all(fs: Any, folder: str, depth: int | None, denied: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """List the entries of a folder and of the folders in it, except the folders themselves.

    fsspec's own `find` is used only where the store lists a whole prefix at once. The general one, which walks from
    folder to folder, silently leaves out each folder that it fails to list.

    Args:
        fs: The filesystem.
        folder: The folder.
        depth: The number of folder levels to list, or None for all of them.
        denied: Receives the folders that may not be listed; None raises `PermissionError` for them.

    Returns:
        The fsspec entry of each file by its full name.
    """
    if depth is None and _lists_prefixes(fs):
        return fs.find(folder, detail=True)
    files: dict[str, dict[str, Any]] = {}
    folders, seen = [folder], {folder}
    level = 0
    while folders and (depth is None or level < depth):
        entries: dict[str, dict[str, Any]] = {}
        for name in folders:
            try:
                entries |= {entry["name"]: entry for entry in fs.ls(name, detail=True)}
            except FileNotFoundError:
                if not level:
                    raise
                continue  # deleted since its parent was listed
            except PermissionError:
                if denied is None or not level:
                    raise
                denied.append(name)
        files |= {name: entry for name, entry in entries.items() if entry["type"] != "directory"}
        folders = [name for name, entry in entries.items() if entry["type"] == "directory" and name not in seen]
        seen.update(folders)
        level += 1
    return files


def _lists_prefixes(fs: Any) -> bool:
    """Return True if a filesystem lists a prefix in a way of its own, and not by walking from folder to folder."""
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    kind = type(fs)
    if isinstance(fs, AsyncFileSystem):
        return kind._find is not AsyncFileSystem._find
    return kind.find is not AbstractFileSystem.find


def read_range(fs: Any, url: str, start: int, end: int) -> bytes:
    """Return the bytes [start, end) of a file.

    Raises:
        ShortRead: The store sent another number of bytes.
    """
    data: bytes = fs.cat_file(url, start=start, end=end, **time_limit(fs, end - start))
    if len(data) != end - start:
        raise ShortRead(f"the store sent {len(data)} of the {end - start} bytes from {start} on")
    return data


def read_starts(fs: Any, urls: list[str], size: int) -> list[bytes | None]:
    """Return the first `size` bytes of each file, with None for each file that cannot be opened.

    Raises:
        Exception: The first transient error; repeating the call may succeed.
    """
    # Without `batch_size` some filesystems would send all requests at once, and others one after another.
    batch_size = {"batch_size": CONNECTIONS} if getattr(fs, "async_impl", False) else {}
    answers = fs.cat_ranges(urls, [0] * len(urls), [size] * len(urls), on_error="return", **batch_size)
    for answer in answers:
        if isinstance(answer, BaseException) and is_transient(answer):
            raise answer
    return [None if isinstance(answer, BaseException) else answer for answer in answers]


def put_and_rename(fs: Any, url: str, put: Callable[[Any, str], None]) -> None:
    """Upload a file under a temporary name and rename it, for stores without atomic uploads (sftp, hdfs, smb …)."""
    fs.makedirs(url.rsplit("/", 1)[0], exist_ok=True)
    temporary = temporary_name(url)
    try:
        put(fs, temporary)
        if fs.exists(url):
            fs.rm_file(url)
        fs.mv(temporary, url)
    except BaseException:
        if fs.exists(temporary):
            fs.rm_file(temporary)
        raise
