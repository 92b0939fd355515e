"""Extraction of a tar with the standard library, as a reader of our tars would do it."""

from __future__ import annotations

import tarfile
from pathlib import Path


def unpack(tar: Path, folder: Path) -> list[str]:
    """Extract a tar whose members must be files that lie below `folder`, and return the names of the members.

    `TarFile.extractall(filter=...)` would make the same checks, but some distributions' Python 3.11 lacks it.
    """
    with tarfile.open(tar) as members:
        for member in members:
            path = folder / member.name
            assert member.isreg(), member.name
            assert path.resolve().is_relative_to(folder.resolve()), member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            file = members.extractfile(member)
            assert file is not None
            path.write_bytes(file.read())
        return members.getnames()
