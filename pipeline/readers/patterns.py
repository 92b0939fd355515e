"""Globs and brace ranges in the source that a user names."""

from __future__ import annotations

import itertools
import math
import re

from braceexpand import braceexpand
from fsspec.utils import glob_translate

from pipeline.storage import SourceError, redact, scheme

MAX_EXPANDED = 10**6
"""Names that the braces of a pattern may expand to."""

_BRACES = re.compile(r"\{[^{}]*(,|\.\.)[^{}]*\}")
_RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.-?\d+)?\}")
_GLOB = re.compile(r"[*?[]")
_HTTP_GLOB = re.compile(r"[*[]")  # in an http URL a question mark starts the query


def glob_characters(source: str) -> re.Pattern[str]:
    """Return the pattern of a character that makes a path of `source` a glob."""
    return _HTTP_GLOB if scheme(source) in ("http", "https") else _GLOB


def is_pattern(source: str) -> bool:
    """Return True if `source` contains a glob or braces."""
    return bool(glob_characters(source).search(source) or _BRACES.search(source))


def split_pattern(source: str) -> tuple[str, str]:
    """Split a pattern into the folder before its first glob or brace, and the rest."""
    parts = source.split("/")
    wild = glob_characters(source)
    first = next(place for place, part in enumerate(parts) if "{" in part or wild.search(part))
    root = "/".join(parts[:first])
    if not root:
        root = "/" if source.startswith("/") else "."
    return root + "//" if root.endswith(":") else root, "/".join(parts[first:])


def expand_braces(pattern: str, source: str) -> list[str]:
    """Return the names that a pattern with braces stands for.

    Args:
        pattern: A path that may contain braces.
        source: The source as the user gave it, for messages.

    Raises:
        SourceError: The braces do not match, or stand for more than `MAX_EXPANDED` names.
    """
    too_many = f"{redact(source)}: the braces stand for more than {MAX_EXPANDED} names; use a glob (*)"
    # Counted first, because braceexpand builds the list of a range before it yields the first name.
    ranges = [abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(pattern)]
    if math.prod(ranges) > MAX_EXPANDED:
        raise SourceError(too_many)
    try:
        names = list(itertools.islice(braceexpand(pattern), MAX_EXPANDED + 1))
    except ValueError as error:
        raise SourceError(f"{redact(source)}: the braces do not match; write ranges as {{0000..0999}}") from error
    if len(names) > MAX_EXPANDED:
        raise SourceError(too_many)
    return names


def compile_globs(globs: list[str], source: str) -> re.Pattern[str]:
    """Return a regular expression that matches the paths of any of the globs.

    Raises:
        SourceError: A glob is malformed.
    """
    try:
        return re.compile("|".join(f"(?:{glob_translate(glob)})" for glob in globs))
    except ValueError as error:
        raise SourceError(f"{redact(source)}: {error}") from error


def glob_depth(globs: list[str]) -> int | None:
    """Return the number of folder levels that the globs can match, or None if `**` matches any number."""
    return None if any("**" in glob for glob in globs) else max(glob.count("/") + 1 for glob in globs)
