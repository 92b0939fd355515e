"""Versions of the inputs of shards. They are taken from a listing, so that no file is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pipeline.digest import short_digest
from pipeline.storage.backend import ListedFile


def file_version(file: ListedFile) -> str:
    """Return 16 hexadecimal digits for the size and the version of a file, or "" if its version is unknown."""
    return short_digest(f"{file.size} {file.version}") if file.version else ""


def group_version(files: Sequence[ListedFile]) -> str:
    """Return 16 hexadecimal digits for the paths, sizes and versions of files, or "" if a version is unknown."""
    if not all(file.version for file in files):
        return ""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.version}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
