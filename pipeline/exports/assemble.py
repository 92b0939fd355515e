"""What the formats share: lines from all label shards that are assembled into one file, and copied source images."""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pipeline.exports.items import Export, LabelledImage
from pipeline.readers.file_names import stem_of
from pipeline.spreadsheet import text_cell

Lines: TypeAlias = Mapping[str, bytes]
"""Lines that a label shard contributes to files of the whole export, by a name that the format chooses."""


class LineLists:
    """Collects the lines of one label shard by name."""

    def __init__(self) -> None:
        self._lists: defaultdict[str, list[bytes]] = defaultdict(list)

    def add(self, name: str, line: bytes | str) -> None:
        """Append a line, without its line end."""
        self._lists[name].append((line.encode() if isinstance(line, str) else line) + b"\n")

    def lines(self) -> Lines:
        """Return the collected lines."""
        return {name: b"".join(lines) for name, lines in self._lists.items()}


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
                    yield line.removesuffix(b"\n")

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, f"{name}.lines")


def write_source_image(export: Export, image: LabelledImage, folder: str = "images") -> None:
    """Write the source image into a folder of DEST if the export includes source images."""
    if image.source_image is not None:
        export.dest.write_bytes(f"{folder}/{image.file}", image.source_image)


def key_line(image: LabelledImage, name: str = "") -> str:
    """Return the line of an image in keys.csv; `name` is that of its files if it is not `image.name`."""
    text = io.StringIO()
    cells = [text_cell(cell) for cell in (name or image.name, image.key, stem_of(image.key))]
    csv.writer(text, lineterminator="").writerow([*cells, image.part])
    return text.getvalue()


def keys_file(fragments: Fragments) -> tuple[str, Iterator[bytes]]:
    """Return path and contents of keys.csv, which maps file names to keys, in UTF-8.

    A cell that a spreadsheet would run as a formula has an apostrophe in front; see `text_cell`.
    """

    def lines() -> Iterator[bytes]:
        yield b"name,key,stem,part\n"
        for line in fragments.lines("keys"):
            yield line + b"\n"

    return "keys.csv", lines()
