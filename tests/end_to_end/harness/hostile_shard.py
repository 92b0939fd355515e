"""A hostile shard: its bytes, and what must become of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

OK = frozenset({"ok"})


@dataclass(frozen=True)
class Due:
    """A row that must be there. statuses: of which it has one. kind: of the bad sample, "" of a good one.

    key None: it is not determined.
    """

    key: str | None
    statuses: frozenset[str]
    kind: str = ""


@dataclass(frozen=True)
class HostileShard:
    """One file, or a folder of images, and the rows that are due.

    Attributes:
        kind: for the table.
        suffix: of the file; "" of a folder.
        data: of the file.
        due: the rows from the first one on.
        beyond: how many rows may follow, where the damage begins.
        refused: whether the shard as a whole may or must be an error.
        files: of a folder, by their names.
    """

    kind: str
    suffix: str
    data: bytes
    due: list[Due]
    beyond: int = 0
    refused: Literal["never", "may", "must"] = "never"
    files: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def cases(self) -> list[str]:
        """The kind of each bad thing in it."""
        return [due.kind for due in self.due if due.kind] or [self.kind]
