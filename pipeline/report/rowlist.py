"""The list of all rows, in files of bounded size, which the page keeps in memory to filter and search them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from diffseg.drawing.overlay import class_colour, hexadecimal
from pipeline.report.datafiles import DataFolder
from pipeline.report.part import Entry

ROWS_A_FILE = 5000


class RowList:
    """Rows as they come from the parts; `write` puts the last ones into their file."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._rows: list[list[Any]] = []
        self._files = 0
        self._total = 0
        self._statuses: dict[str, int] = {"ok": 0}
        self._names: dict[str, int] = {}

    def add(self, entries: Iterable[Entry]) -> None:
        """The rows of the next label shard."""
        for entry in entries:
            self._rows.append(self._line(entry))
            if len(self._rows) == ROWS_A_FILE:
                self.write()

    def write(self) -> None:
        """Write the rows that are in no file yet."""
        if self._rows:
            self._data.write(f"rows-{self._files}", self._rows)
            self._total += len(self._rows)
            self._files, self._rows = self._files + 1, []

    def tables(self) -> dict[str, Any]:
        """What the numbers in the rows stand for, and how many rows there are in how many files."""
        colours = {name: hexadecimal(class_colour(name)) for name in self._names}
        return {
            "rows": self._total,
            "rowFiles": self._files,
            "statuses": list(self._statuses),
            "names": [[name, colours[name]] for name in self._names],
        }

    def _line(self, entry: Entry) -> list[Any]:
        status = self._statuses.setdefault(entry.status, len(self._statuses))
        place = [entry.key, entry.part, entry.row, status]
        if entry.tile < 0:
            return [*place, entry.error]
        names = [self._names.setdefault(name, len(self._names)) for name in entry.names]
        return [*place, "", entry.segments, round(entry.confidence, 4), entry.tile, names]
