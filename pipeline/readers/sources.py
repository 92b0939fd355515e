"""SRC as the user gives it: one source, several sources, or a file that lists sources, one on each line."""

from __future__ import annotations

import os
from collections.abc import Iterable

from pipeline.storage import SourceError, Storage, redact, scheme
from pipeline.storage.urls import join_url, split_url

LIST_EXTENSIONS = (".txt", ".list", ".lst", ".urls")
"""Extensions of files that list sources."""
MAX_LIST_BYTES = 2**28
MAX_LISTED = 10**6
"""Lines of a list, as many as the names that braces may expand to."""


def join_sources(sources: Iterable[str]) -> str:
    """Return several sources as one text, with one on each line. All functions that take a source accept this form."""
    return "\n".join(sources)


def redacted_source(source: str, store: Storage) -> str:
    """Return a source for run.json: local paths are absolute, and URLs have no secrets."""
    return join_sources(store.at(part).redacted for part in source_parts(source))


def expand_source(source: str, store: Storage) -> tuple[list[str], bool]:
    """Return the single sources that a source stands for.

    Args:
        source: A folder, file, glob or brace range; several of these, joined by `join_sources`; or a file that lists
            them. A path in such a file is relative to the folder of the file. Its empty lines and lines that begin
            with # do not count.
        store: The storage options.

    Returns:
        The sources, and True if there are several or a list names them. Files are then known by their complete paths,
        since two sources may hold files with equal relative paths, and since a list may grow.

    Raises:
        SourceError: A list is empty, too long, or not text.
    """
    parts = source_parts(source)
    sources: list[str] = []
    has_list = False
    for part in parts:
        if _is_list(part, store):
            has_list = True
            sources += _read_list(part, store)
        else:
            sources.append(part)
    return list(dict.fromkeys(sources)), has_list or len(parts) > 1


def source_parts(source: str) -> list[str]:
    """Return the sources that `join_sources` joined."""
    if "\n" not in source or (not scheme(source) and os.path.exists(source)):  # a local name may hold a line break
        return [source]
    return [part for part in source.split("\n") if part]


def _is_list(source: str, store: Storage) -> bool:
    folder, name = split_url(source.rstrip("/"))
    return name.partition("?")[0].lower().endswith(LIST_EXTENSIONS) and store.at(folder).is_file(name)


def _read_list(source: str, store: Storage) -> list[str]:
    folder, name = split_url(source)
    storage, shown = store.at(folder), redact(source)
    try:
        with storage.open(name) as file:
            data = file.read(MAX_LIST_BYTES + 1)
        if len(data) > MAX_LIST_BYTES or b"\0" in data:
            raise ValueError("it is too large, or no text")
        text = data.decode("utf-8-sig")
    except ValueError as error:  # among others UnicodeDecodeError
        raise SourceError(
            f"{shown}: cannot be read as a list of sources ({error}); expected text in UTF-8 of at most "
            f"{MAX_LIST_BYTES} bytes, with one path or URL on each line"
        ) from None
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines or len(lines) > MAX_LISTED:
        raise SourceError(
            f"{shown}: lists {len(lines)} sources; expected 1 to {MAX_LISTED}, one path or URL on each line"
        )
    is_absolute = ((line, scheme(line) or os.path.isabs(os.path.expanduser(line))) for line in lines)
    return [line if absolute else join_url(storage.url, line) for line, absolute in is_absolute]
