"""What became of the rows of an export, counted for each label shard and added up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

PROBLEMS_SHOWN = 20
"""Number of left-out images that are reported with their reason."""

Part: TypeAlias = Literal["train", "val"]
"""The part of a data set that an image belongs to."""


@dataclass
class Tally:
    """What became of the rows of an export.

    Attributes:
        counts: Number of rows by outcome; `exported` is one of them.
        problems: Key and reason of the first `PROBLEMS_SHOWN` rows that should have been exported and were not.
        parts: Number of images by part.
        polygons: Number of masks that were converted to polygons.
        iou_total: Sum of the IoU of these masks with their polygons.
        iou_lowest: Lowest IoU of a mask with its polygon.
    """

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)
    parts: Counter[Part] = field(default_factory=Counter)
    polygons: int = 0
    iou_total: float = 0.0
    iou_lowest: float = 1.0

    @property
    def iou_mean(self) -> float:
        """Mean IoU of a mask with its polygon; there must be at least one polygon."""
        return self.iou_total / self.polygons

    def leave_out(self, outcome: str, key: str, reason: str) -> None:
        """Count a row that should have been exported and was not."""
        self.counts[outcome] += 1
        if len(self.problems) < PROBLEMS_SHOWN:
            self.problems.append((key, reason))

    def add(self, other: Tally) -> None:
        """Add the tally of one label shard."""
        self.counts.update(other.counts)
        self.problems += other.problems[: PROBLEMS_SHOWN - len(self.problems)]
        self.parts.update(other.parts)
        self.polygons += other.polygons
        self.iou_total += other.iou_total
        self.iou_lowest = min(self.iou_lowest, other.iou_lowest)

    def add_polygon(self, iou: float) -> None:
        """Count a mask that was converted to a polygon with this IoU."""
        self.polygons += 1
        self.iou_total += iou
        self.iou_lowest = min(self.iou_lowest, iou)
