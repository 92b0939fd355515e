"""A tar taken apart as the plainest of programs would do it."""

from __future__ import annotations

import tarfile
from pathlib import Path


def unpack(tar: Path, folder: Path) -> list[str]:
    """The names in it, every member of which is a file and lies below `folder` then.

    `TarFile.extractall(filter=...)` would refuse the same, but is not in every Python 3.11 that distributions carry.
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
