"""The kinds of data files, recognised by their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from pipeline.readers.left_out import LeftOut, has_plugin
from pipeline.readers.samples import IMAGE_EXTENSIONS, PLUGIN_EXTENSIONS, ShardKind
from pipeline.storage import SourceError, redact

TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd", ".tzst", ".tar.bz2", ".tbz2", ".tbz")
_PARQUET_EXTENSIONS = (".parquet", ".parq", ".pq")
_SHARD_EXTENSION = re.compile(
    "(" + "|".join(map(re.escape, (*TAR_EXTENSIONS[1:], *_PARQUET_EXTENSIONS, ".tar"))) + ")$", re.IGNORECASE
)
_QUERY = re.compile(r"\?.*=.*$")
"""The query string of a signed URL, which is no part of the file name."""
_EXAMPLE_EXTENSION = {"tar": "tar", "parquet": "parquet", "images": "jpg"}


def kind_of(path: str) -> ShardKind | None:
    """Return the kind of a data file, or None for other files, hidden files and the files that Spark adds."""
    parts = without_query(path).lower().split("/")
    if any(part.startswith(".") for part in parts):
        return None
    name = parts[-1]
    if name.endswith(TAR_EXTENSIONS):
        return "tar"
    if name.endswith(_PARQUET_EXTENSIONS):
        return None if any(part.startswith("_") for part in parts) else "parquet"
    stem, _, extension = name.rpartition(".")
    if not stem or extension not in IMAGE_EXTENSIONS:
        return None
    return "images" if extension not in PLUGIN_EXTENSIONS or has_plugin(extension) else None


def without_query(path: str) -> str:
    """Return a path without the query string of a signed URL."""
    return _QUERY.sub("", path)


def path_without_extension(path: str) -> str:
    """Return the path of a shard file without its extension and its query string."""
    return _SHARD_EXTENSION.sub("", without_query(path))


def only_kind(paths: Iterable[str], root: str, source: str, left_out: LeftOut) -> ShardKind:
    """Return the kind that all files of a source have.

    Args:
        paths: The data files.
        root: Their root folder, for the advice in the message.
        source: The source as the user gave it, for messages.
        left_out: The other files, for messages.

    Raises:
        SourceError: There are no files, or files of several kinds.
    """
    shown = redact(source)
    counts = Counter(kind for path in paths if (kind := kind_of(path)))
    if not counts:
        besides = f" ({left_out.text()})" if left_out.plain() else ""
        raise SourceError(
            f"{shown}: no .tar, .tar.gz, .parquet or image files were found there{besides}. "
            "Check the path, and the storage options if it needs credentials"
        )
    if len(counts) > 1:
        listing = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        example = f"/**/*.{_EXAMPLE_EXTENSION[counts.most_common(1)[0][0]]}"
        raise SourceError(
            f"{shown}: holds files of several kinds ({listing}), so it is not clear what to label. "
            f"Name one kind by a glob, for example '{redact(root).rstrip('/')}{example}'"
        )
    return next(iter(counts))
