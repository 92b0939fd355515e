"""Folders in a source that this program wrote, such as the OUT of an earlier run: their files are no input."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.readers.left_out import LeftOut
from pipeline.storage import Storage
from pipeline.storage.backend import ListedFile

OWN_OUTPUT = "output of this program"
_MARKERS = {
    "run.json": {"fingerprint", "model_sha256", "settings"},  # `diffseg label`
    ".diffseg-export.json": {"fingerprint", "format", "photographs"},  # `diffseg export`
    "export.json": {"fingerprint", "format", "photographs"},  # `diffseg export` before its record was hidden
    "train.json": {"labels", "workers"},  # `diffseg train`
}
"""Name of a file in each such folder → some keys of its JSON object, because other programs use these names too."""


def without_own_folders(storage: Storage, files: Sequence[ListedFile], left_out: LeftOut) -> list[ListedFile]:
    """Return the files that are not in a folder that this program wrote, and count those folders as left out.

    Args:
        storage: The folder that the paths are relative to.
        files: Its files, sorted by path.
        left_out: Receives the folders.
    """
    paths = [file.path for file in files if file.path.rpartition("/")[2] in _MARKERS]
    prefixes: tuple[str, ...] = ()
    for path, content in zip(paths, storage.read_small(paths), strict=True):
        folder, slash, name = path.rpartition("/")
        if content is not None and _is_marker(name, content) and not path.startswith(prefixes or ("\0",)):
            prefixes += (folder + slash,)
            left_out.add(OWN_OUTPUT, folder or ".")
    return [file for file in files if not prefixes or not file.path.startswith(prefixes)]


def _is_marker(name: str, content: bytes) -> bool:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.keys() >= _MARKERS[name]
