"""What the listing of a source leaves out, counted by kind, so that nothing is left out in silence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from pipeline.readers.samples import shorten, utf8
from pipeline.storage import redact

EXAMPLES = 3
"""Paths that are kept for each kind."""
MAX_KINDS = 50
"""Kinds that are told apart. Files of any further kind are counted as `OTHER`."""
HIDDEN, OTHER, NO_EXTENSION = "hidden file", "other", "file without an extension"

PLUGINS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("heic", "heif", "hif"), ("pillow_heif", "heic")),
    "jxl": ("pillow_jxl", "jxl"),
}
"""Extension of an image → the module that decodes it, and the extra that installs the module."""

_CONVERT = "convert it to WebDataset tars or to Parquet files with an image column"
_ADVICE: Mapping[str, str] = {
    **{extension: f"pip install 'diffseg-pipeline[{extra}]'" for extension, (_, extra) in PLUGINS.items()},
    **dict.fromkeys(("zip", "rar", "7z"), "unpack it"),
    **dict.fromkeys(("tar.xz", "txz", "tar.lz4"), "recompress it as .tar.zst or .tar.gz"),
    **dict.fromkeys(("arrow", "feather", "tfrecord", "tfrecords", "lmdb", "mdb", "h5", "hdf5", "beton"), _CONVERT),
    **dict.fromkeys(("cr2", "cr3", "nef", "arw", "dng", "raf", "orf", "rw2"), "develop it to JPEG, PNG or TIFF"),
    "unreadable folder": "give this user the permission to read and search it",
    "unreadable file": "give this user the permission to read it",
}
_TAR = re.compile(r"\.(tar\.[a-z0-9]{1,5})$")
_EXTENSION = re.compile(r"[a-z][a-z0-9]{0,11}|7z")


def has_plugin(extension: str) -> bool:
    """Return True if the module that decodes images with this extension is installed on this machine."""
    return extension in PLUGINS and find_spec(PLUGINS[extension][0]) is not None


def file_kind(path: str) -> str:
    """Return the kind of a file that is not read, mostly its extension in lower case."""
    name = path.lower().rpartition("/")[2]
    if any(part.startswith(".") for part in path.split("/")):
        return HIDDEN
    if match := _TAR.search(name):
        return match[1]
    stem, _, extension = name.rpartition(".")
    match = _EXTENSION.match(extension)
    return match[0] if stem and match else NO_EXTENSION


class LeftOut:
    """Counts and first examples of what is left out, by kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, list[str]]] = {}

    def add(self, kind: str, path: str) -> None:
        """Count a file or folder."""
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            kind = OTHER
        count, examples = self._kinds.get(kind, (0, []))
        if len(examples) < EXAMPLES:
            examples.append(shorten(redact(utf8(path)), 200))
        self._kinds[kind] = count + 1, examples

    def __bool__(self) -> bool:
        """Return True if anything but hidden files is left out."""
        return bool(self._kinds.keys() - {HIDDEN})

    def plain(self) -> dict[str, dict[str, Any]]:
        """Return the counts and examples by kind, as run.json holds them."""
        return {kind: {"count": count, "examples": list(paths)} for kind, (count, paths) in sorted(self._kinds.items())}

    def text(self) -> str:
        """Return one line for people."""
        return "; ".join(left_out_lines(self.plain()))


def left_out_lines(plain: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return lines for people, with the advice for each kind that has one.

    Args:
        plain: The result of `LeftOut.plain`.
    """
    return list(_lines(plain))


def _lines(plain: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    ordinary = [_phrase(kind, entry) for kind, entry in plain.items() if kind not in _ADVICE]
    if ordinary:
        yield f"left out: {', '.join(ordinary)}"
    for kind, entry in plain.items():
        if kind in _ADVICE:
            yield f"left out: {_phrase(kind, entry)}: {_ADVICE[kind]}"


def _phrase(kind: str, entry: Mapping[str, Any]) -> str:
    count, examples = entry["count"], list(entry["examples"])
    more = ", …" if count > len(examples) else ""
    return f"{count:,} {kind} ({', '.join(examples)}{more})"
