"""What the formats share: lines from all label shards that are assembled into one file, and copied source images."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pipeline.exports.items import Export, LabelledImage
from pipeline.spreadsheet import text_cell

Lines: TypeAlias = Mapping[str, bytes]
"""Lines that a label shard contributes to files of the whole export, by a name that the format chooses."""


@dataclass(frozen=True)
class Fragments:
    """The lines of all label shards, collected in local files.

    Attributes:
        folder: Local folder of these files.
    """

    folder: str

    def add(self, lines: Lines) -> None:
        """Append the lines of one label shard."""
        for name, data in lines.items():
            with open(self._path(name), "ab") as file:
                file.write(data)

    def lines(self, name: str) -> Iterator[bytes]:
        """Yield the collected lines without their line ends."""
        if os.path.exists(self._path(name)):
            with open(self._path(name), "rb") as file:
                for line in file:
                    yield line.rstrip(b"\n")

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, f"{name}.lines")


def write_source_image(export: Export, image: LabelledImage, folder: str = "images") -> None:
    """Write the source image into a folder of DEST if the export includes source images."""
    if image.source_image is not None:
        export.dest.write_bytes(f"{folder}/{image.file}", image.source_image)


def key_line(image: LabelledImage) -> bytes:
    """Return a line of keys.csv."""
    text = io.StringIO()
    key = image.key.encode("unicode_escape").decode()
    csv.writer(text, lineterminator="\n").writerow([text_cell(image.name), text_cell(key)])
    return text.getvalue().encode()


def keys_file(fragments: Fragments) -> tuple[str, Iterator[bytes]]:
    """Return path and contents of keys.csv, which maps file names to keys.

    Backslashes and characters outside ASCII are escaped as in Python. A name or key that a spreadsheet would run as a
    formula has an apostrophe in front; see `text_cell`.
    """

    def lines() -> Iterator[bytes]:
        yield b"name,key\n"
        for line in fragments.lines("keys"):
            yield line + b"\n"

    return "keys.csv", lines()
