"""Parsing of paths and URLs, and the kinds of URL that are refused."""

from __future__ import annotations

import re

from pipeline.storage.redaction import redact

# Filesystems that wrap another one or run what a file tells them to run. No data set needs them.
_REFUSED = {
    *("pipe", "cmd", "exec", "shell", "reference", "generic", "dask", "asyncwrapper", "async_wrapper", "asynclocal"),
    *("cached", "blockcache", "filecache", "simplecache", "dir"),
}
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


class SourceError(ValueError):
    """A mistake in a path, URL or option of the user. The message names the URL, the problem and the remedy."""


def scheme(url: str) -> str:
    """Return the scheme of a URL in lower case, or "" for a local path.

    Raises:
        SourceError: The URL runs a command or loads code (`pipe:` and the like), or is chained
            (`zip://…::s3://…`).
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
    """Return a local path as the user wrote it, without `file://`."""
    return _SCHEME.sub("", url)


def join_url(root: str, path: str) -> str:
    """Return the URL or path of `path` below the folder `root`; an empty `path` gives `root`."""
    if not path:
        return root
    return f"{root if root.endswith('/') else root + '/'}{path}"


def split_url(url: str) -> tuple[str, str]:
    """Split the URL of a file into its folder and its name; the query string of a signed URL stays with the name."""
    path, question, query = url.partition("?") if scheme(url) in ("http", "https") else (url, "", "")
    folder, slash, name = path.rpartition("/")
    return (folder + slash if not folder or folder.endswith("/") else folder) or ".", name + question + query
