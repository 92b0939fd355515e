"""The result of a round of chaos, and a table of such results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Round:
    """The result of one round.

    Attributes:
        number: The number of the round.
        seed: The seed of all rounds.
        faults: The kinds of the process faults, as drawn, and then that of the source.
        events: A line for each fault and its consequences.
        drivers: How many drivers were started.
        retried: Shards that were done by a second or later attempt.
        seconds: Wall time of the round.
        rows: Rows in OUT.
        lost: Rows of the undisturbed run that OUT lacks.
        duplicated: Rows that OUT has in addition.
        equal: Whether the files of OUT equal those of the undisturbed run.
        violations: What must not happen: wrong exit codes, different files, processes left behind.
    """

    number: int
    seed: int
    faults: list[str]
    events: list[str]
    drivers: int
    retried: int
    seconds: float
    rows: int
    lost: int
    duplicated: int
    equal: bool
    violations: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether the run lost and duplicated nothing, and violated nothing."""
        return self.equal and not (self.lost or self.duplicated or self.violations)


def table(rounds: list[Round]) -> str:
    """Return a Markdown table of rounds."""
    lines = [
        "| round | faults | driver starts | shards retried | seconds | rows | lost | duplicated | files | verdict |",
        "|--:|---|--:|--:|--:|--:|--:|--:|---|---|",
    ]
    for r in rounds:
        cells: list[Any] = [r.number, ", ".join(r.faults), r.drivers, r.retried, f"{r.seconds:.0f}", r.rows, r.lost]
        cells += [r.duplicated, "equal" if r.equal else "differ", "good" if r.is_good else "; ".join(r.violations)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
