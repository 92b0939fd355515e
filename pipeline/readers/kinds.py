"""The kinds of data files, recognised by their names."""

from __future__ import annotations

import re
from collections import Counter

from pipeline.readers.samples import IMAGE_EXTENSIONS, ShardKind
from pipeline.storage import SourceError, redact

_SHARD_EXTENSION = re.compile(r"\.(tar|tar\.gz|tgz|parquet|parq|pq)$", re.IGNORECASE)
_QUERY = re.compile(r"\?.*=.*$")
"""The query string of a signed URL, which is no part of the file name."""
_EXAMPLE_EXTENSION = {"tar": "tar", "parquet": "parquet", "images": "jpg"}


def kind_of(path: str) -> ShardKind | None:
    """Return the kind of a data file, or None for other files, hidden files and the files that Spark adds."""
    parts = _QUERY.sub("", path).lower().split("/")
    if any(part.startswith(".") for part in parts):
        return None
    name = parts[-1]
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return "tar"
    if name.endswith((".parquet", ".parq", ".pq")):
        return None if any(part.startswith("_") for part in parts) else "parquet"
    stem, _, extension = name.rpartition(".")
    return "images" if stem and extension in IMAGE_EXTENSIONS else None


def path_without_extension(path: str) -> str:
    """Return the path of a shard file without its extension and its query string."""
    return _SHARD_EXTENSION.sub("", _QUERY.sub("", path))


def only_kind(paths: list[str], root: str, source: str) -> ShardKind:
    """Return the kind that all files of a source have.

    Args:
        paths: The data files.
        root: Their root folder, for the advice in the message.
        source: The source as the user gave it, for messages.

    Raises:
        SourceError: There are no files, or files of several kinds.
    """
    shown = redact(source)
    if not paths:
        raise SourceError(
            f"{shown}: no .tar, .tar.gz, .parquet or image files were found there. "
            "Check the path, and the storage options if it needs credentials"
        )
    counts = Counter(kind for path in paths if (kind := kind_of(path)))
    if len(counts) > 1:
        listing = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        example = f"/**/*.{_EXAMPLE_EXTENSION[counts.most_common(1)[0][0]]}"
        raise SourceError(
            f"{shown}: holds files of several kinds ({listing}), so it is not clear what to label. "
            f"Name one kind by a glob, for example '{redact(root).rstrip('/')}{example}'"
        )
    return next(iter(counts))
