"""One label shard's part of the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.output.reader import label_rows, segment_name
from pipeline.output.source_images import SourceImages
from pipeline.readers.samples import Shard
from pipeline.report.datafiles import DataFolder
from pipeline.report.facts import MOST_ERROR, Facts
from pipeline.report.tiles import make_tile
from pipeline.storage import Storage

COLUMNS = ("key", "index", "status", "error", "height", "width", "n_segments", "segments", "confidence")
TILES_A_FILE = 24
MOST_KEY = 1000
"""Characters of a key that are shown and searched."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every part is told. photographs_gone: why there are none at all, if so."""

    out: Storage
    data: DataFolder
    image_field: str | None
    photographs_gone: str = ""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One label shard. number: of all. shown: whether its rows are in the gallery. source: the shard it labels."""

    shard: str
    number: int
    shown: bool
    source: Shard | None


class Entry(NamedTuple):
    """A row in the list of all rows.

    row: its place in its shard. tile: its number among the pictures of its part, -1 where it has none.
    """

    key: str
    part: int
    row: int
    status: str
    segments: int
    confidence: float
    tile: int
    error: str
    names: tuple[str, ...]


def tile_file(part: int, number: int) -> str:
    """The name of a file of pictures, without extension."""
    return f"tiles-{part}-{number}"


def report_part(common: Common, part: Part) -> tuple[Facts, list[Entry]]:
    """Count the rows of a label shard, and write the pictures of those that are shown."""
    facts, entries = Facts(), []
    tiles = _Tiles(common.data, part.number)
    photographs = _photographs(common, part) if part.shown else ""
    for row in label_rows(common.out, part.shard, (*COLUMNS, "mask", "meta") if part.shown else COLUMNS):
        facts.add(row)
        if part.shown:
            tile = tiles.add(make_tile(row, photographs)) if row["status"] == "ok" else -1
            entries.append(_entry(part, row, tile))
    tiles.write()
    return facts, entries


class _Tiles:
    def __init__(self, data: DataFolder, part: int) -> None:
        self._data, self._part, self._files = data, part, 0
        self._waiting: list[dict[str, Any]] = []

    def add(self, tile: dict[str, Any]) -> int:
        if len(self._waiting) == TILES_A_FILE:
            self.write()
        self._waiting.append(tile)
        return self._files * TILES_A_FILE + len(self._waiting) - 1

    def write(self) -> None:
        if self._waiting:
            self._data.write(tile_file(self._part, self._files), self._waiting)
            self._files, self._waiting = self._files + 1, []


def _photographs(common: Common, part: Part) -> SourceImages | str:
    if common.photographs_gone or part.source is None:
        return common.photographs_gone or f"shard {part.shard} is not in SRC any more"
    rows = set(_labelled(common.out, part.shard))
    return SourceImages(part.source, rows, common.out, common.image_field)


def _labelled(out: Storage, shard: str) -> Iterator[int]:
    return (row["index"] for row in label_rows(out, shard, ("index", "status")) if row["status"] == "ok")


def _entry(part: Part, row: dict[str, Any], tile: int) -> Entry:
    names = {segment_name(segment) for segment in row["segments"] or ()}
    return Entry(
        key=row["key"][:MOST_KEY],
        part=part.number,
        row=row["index"],
        status=row["status"],
        segments=row["n_segments"],
        confidence=row["confidence"] or 0.0,
        tile=tile,
        error=(row["error"] or "")[:MOST_ERROR],
        names=tuple(sorted(name for name in names if name)),
    )
