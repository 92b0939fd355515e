"""What a URL names, and which are refused."""

from __future__ import annotations

import re

from pipeline.storage.redaction import redact

# Filesystems that wrap another one, or act on what a file tells them to do: nothing that a data set needs.
_REFUSED = {
    *("pipe", "cmd", "exec", "shell", "reference", "generic", "dask", "asyncwrapper", "async_wrapper", "asynclocal"),
    *("cached", "blockcache", "filecache", "simplecache", "dir"),
}
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


class SourceError(ValueError):
    """A mistake in what the user named: the message holds the URL, what was found, and what to do."""


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


def local_path(url: str) -> str:
    """A local path as it was written, without ``file://``."""
    return _SCHEME.sub("", url)
