"""The part of the page that one label shard contributes: its statistics, its list entries and its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.output.commit import LabelShard
from pipeline.output.levels import LEVEL_COLUMNS
from pipeline.output.reader import label_rows, segment_name, selected_keys
from pipeline.output.selection import RowSelection
from pipeline.output.source_images import SourceImages
from pipeline.readers.samples import Shard
from pipeline.report.data_files import DataFolder
from pipeline.report.row_statistics import MAX_ERROR_LENGTH, RowStatistics
from pipeline.report.scores import MAIN_SCORE, RowScores, key_cell
from pipeline.report.tiles import Tile, make_tile
from pipeline.storage import Storage

COLUMNS = ("key", "index", "status", "error", "height", "width", "n_segments", "segments", "confidence")
TILES_PER_FILE = 24
MAX_KEY_LENGTH = 1000
"""Characters of a key that are shown and searched."""


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """What all tasks of a report share.

    Attributes:
        out: OUT of the run.
        data: Folder of the page's data files.
        image_field: Image field of the run's SRC.
        images_missing: Why all source images are missing; empty if they are not.
        selection: Rows that the page is about.
        full: Whether pictures are stored in full size too.
        levels: Whether the rows have levels.
    """

    out: Storage
    data: DataFolder
    image_field: str | None
    full: bool = False
    levels: bool = False
    images_missing: str = ""
    selection: RowSelection = field(default_factory=RowSelection)


@dataclass(frozen=True, kw_only=True)
class ReportTask:
    """One label shard of the page.

    Attributes:
        shard: Name of the label shard.
        number: Number of the shard, from 0.
        shown: Whether its rows are in the gallery.
        source: Source shard with the images; None if it was not found.
        scores: Scores of its rows.
    """

    shard: LabelShard
    number: int
    shown: bool
    source: Shard | None
    scores: RowScores = field(default_factory=dict)


class ListEntry(NamedTuple):
    """An entry in the list of all rows.

    Attributes:
        key: Key of the sample.
        shard: Number of the label shard.
        row: Index of the row in the shard.
        status: Status of the row.
        segments: Number of segments.
        confidence: 0 to 1; 0 for a row without labels.
        tile: Number of its picture among those of the shard; -1 for a row without labels.
        error: Why the row has no labels.
        names: Names of its segments, sorted.
        covering: Score `covering` by evaluation.
    """

    key: str
    shard: int
    row: int
    status: str
    segments: int
    confidence: float
    tile: int
    error: str
    names: tuple[str, ...]
    covering: Mapping[str, float]


def tile_file(shard: int, number: int) -> str:
    """Return the name of a file of pictures, without extension."""
    return f"tiles-{shard}-{number}"


def full_file(shard: int, tile: int) -> str:
    """Return the name of the file with the pictures of a row in full size, without extension."""
    return f"full-{shard}-{tile}"


def report_shard(context: ReportContext, task: ReportTask) -> tuple[RowStatistics, list[ListEntry]]:
    """Collect the statistics of a label shard; if it is shown, also write its pictures and return its list entries."""
    statistics, entries = RowStatistics(), []
    tiles = _TileWriter(context.data, task.number)
    source_images = _source_images(context, task) if task.shown else ""
    columns = {*COLUMNS, *context.selection.columns, *(("mask", "meta") if task.shown else ())}
    if task.shown and context.levels:
        columns |= {*LEVEL_COLUMNS}
    for row in label_rows(context.out, task.shard, sorted(columns)):
        if not context.selection.accepts(row):
            continue
        statistics.add(row)
        scores = task.scores.get((row["index"], key_cell(row["key"])), {})
        covering = {name: value for name, scored in scores.items() if (value := scored[MAIN_SCORE]) is not None}
        for evaluation, value in covering.items():
            statistics.add_covering(evaluation, value)
        if task.shown:
            number = -1
            if row["status"] == "ok":
                tile = make_tile(row, source_images, full=context.full, scores=scores)
                statistics.contacts.update(tile.contacts)
                number = tiles.add(tile)
            entries.append(_list_entry(task, row, number, covering))
    tiles.write()
    return statistics, entries


def count_selected(common: tuple[Storage, RowSelection], shard: LabelShard) -> int:
    """Return the number of rows of a label shard that are selected."""
    out, selection = common
    return sum(map(selection.accepts, label_rows(out, shard, sorted({"key", *selection.columns}))))


class _TileWriter:
    """Writes the pictures of a label shard, `TILES_PER_FILE` in a file."""

    def __init__(self, data: DataFolder, shard: int) -> None:
        self._data, self._shard, self._files = data, shard, 0
        self._pending: list[dict[str, Any]] = []

    def add(self, tile: Tile) -> int:
        """Add a picture, write it in full size if it has that, and return its number."""
        if len(self._pending) == TILES_PER_FILE:
            self.write()
        self._pending.append(tile.data)
        number = self._files * TILES_PER_FILE + len(self._pending) - 1
        if tile.full is not None:
            self._data.write(full_file(self._shard, number), tile.full)
        return number

    def write(self) -> None:
        """Write the pictures that are in no file yet."""
        if self._pending:
            self._data.write(tile_file(self._shard, self._files), self._pending)
            self._files, self._pending = self._files + 1, []


def _source_images(context: ReportContext, task: ReportTask) -> SourceImages | str:
    """Return the source images of a label shard, or why they are missing."""
    if context.images_missing or task.source is None:
        return context.images_missing or f"shard {task.shard} is no longer in SRC"
    keys = selected_keys(context.out, task.shard, context.selection)
    return SourceImages(task.source, keys, context.out, context.image_field)


def _list_entry(task: ReportTask, row: dict[str, Any], tile: int, covering: Mapping[str, float]) -> ListEntry:
    names = {segment_name(segment) for segment in row["segments"] or ()}
    return ListEntry(
        key=row["key"][:MAX_KEY_LENGTH],
        shard=task.number,
        row=row["index"],
        status=row["status"],
        segments=row["n_segments"],
        confidence=row["confidence"] or 0.0,
        tile=tile,
        error=(row["error"] or "")[:MAX_ERROR_LENGTH],
        names=tuple(sorted(name for name in names if name)),
        covering=covering,
    )
