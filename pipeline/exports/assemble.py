"""What formats share: lines that parts hand back to be put into one file, and photographs beside."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pipeline.exports.items import Export, Item

Lines: TypeAlias = Mapping[str, bytes]
"""What a part adds to files of the whole export, by a name of the format's own."""


@dataclass(frozen=True)
class Fragments:
    """The lines of all parts, in files of a folder of this machine."""

    folder: str

    def add(self, lines: Lines) -> None:
        """Append those of one part."""
        for name, data in lines.items():
            with open(self._path(name), "ab") as file:
                file.write(data)

    def lines(self, name: str) -> Iterator[bytes]:
        """Without their ends."""
        if os.path.exists(self._path(name)):
            with open(self._path(name), "rb") as file:
                for line in file:
                    yield line.rstrip(b"\n")

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, f"{name}.lines")


def write_photograph(export: Export, item: Item, folder: str = "images") -> None:
    """Put the photograph into a folder of DEST, where photographs are asked for."""
    if item.photograph is not None:
        export.dest.write_bytes(f"{folder}/{item.file}", item.photograph)


def key_line(item: Item) -> bytes:
    """A line of keys.csv."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([item.name, item.key.encode("unicode_escape").decode()])
    return text.getvalue().encode()


def keys_file(fragments: Fragments) -> tuple[str, Iterator[bytes]]:
    """keys.csv: which key a name stands for; backslashes and what is not ASCII are escaped as in Python."""

    def lines() -> Iterator[bytes]:
        yield b"name,key\n"
        for line in fragments.lines("keys"):
            yield line + b"\n"

    return "keys.csv", lines()
