"""The list of all rows, in files of bounded size. The page keeps it in memory to filter and search it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.report.colours import name_colours
from pipeline.report.data_files import DataFolder
from pipeline.report.row_statistics import RowStatistics
from pipeline.report.shard import ListEntry

ROWS_PER_FILE = 5000


class RowList:
    """Collects the entries of all label shards in order, and writes full files; call `write` after the last entry."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._rows: list[list[Any]] = []
        self._files = 0
        self._total = 0
        self._statuses: dict[str, int] = {"ok": 0}
        self._names: dict[str, int] = {}
        self._evaluations: dict[str, int] = {}

    def add(self, entries: Iterable[ListEntry]) -> None:
        """Add the entries of the next label shard."""
        for entry in entries:
            self._rows.append(self._as_list(entry))
            if len(self._rows) == ROWS_PER_FILE:
                self.write()

    def write(self) -> None:
        """Write the entries that are in no file yet."""
        if self._rows:
            self._data.write(f"rows-{self._files}", self._rows)
            self._total += len(self._rows)
            self._files, self._rows = self._files + 1, []

    def tables(self, statistics: RowStatistics) -> dict[str, Any]:
        """Return the tables that the entries refer to by number, and the number of rows and of files.

        Args:
            statistics: Statistics over all rows, by which names get colours.
        """
        by_frequency = sorted(self._names, key=lambda name: (-statistics.names[name], name))
        colours = name_colours(by_frequency, statistics.contacts)
        return {
            "rows": self._total,
            "rowFiles": self._files,
            "statuses": list(self._statuses),
            "names": [(name, colours[name]) for name in self._names],
            "evaluations": list(self._evaluations),
        }

    def _as_list(self, entry: ListEntry) -> list[Any]:
        """Return an entry in the form that `readRow` of data.js expects."""
        status = self._statuses.setdefault(entry.status, len(self._statuses))
        common = [entry.key, entry.shard, entry.row, status]
        if entry.tile < 0:
            return [*common, entry.error]
        names = [self._names.setdefault(name, len(self._names)) for name in entry.names]
        numbers = {name: self._evaluations.setdefault(name, len(self._evaluations)) for name in entry.covering}
        covering = {str(numbers[name]): round(value, 4) for name, value in entry.covering.items()}
        return [*common, "", entry.segments, round(entry.confidence, 4), entry.tile, names, covering]
