"""A hostile shard: its bytes, and the rows that it must yield."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

OK = frozenset({"ok"})


@dataclass(frozen=True)
class ExpectedRow:
    """A row that must exist.

    Attributes:
        key: Its key; None if the key is not determined.
        statuses: The statuses that it may have.
        kind: The kind of the bad sample; "" for a good one.
    """

    key: str | None
    statuses: frozenset[str]
    kind: str = ""


@dataclass(frozen=True)
class HostileShard:
    """A file, or a folder of images, and the rows that it must yield.

    Attributes:
        kind: Its line in the table of outcomes.
        suffix: Suffix of the file; "" for a folder.
        data: Content of the file.
        expected: The rows, from the first one on.
        beyond: How many more rows may follow where the damage begins.
        refused: Whether the shard as a whole may or must be an error.
        files: Content of the files of a folder, by their names.
    """

    kind: str
    suffix: str
    data: bytes
    expected: list[ExpectedRow]
    beyond: int = 0
    refused: Literal["never", "may", "must"] = "never"
    files: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def cases(self) -> list[str]:
        """The kind of each bad sample, or else the kind of the shard."""
        return [row.kind for row in self.expected if row.kind] or [self.kind]
