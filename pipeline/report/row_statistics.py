"""Statistics over all rows of a run, collected one label shard at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.output.reader import segment_name

CONFIDENCE_BINS = 20
"""Number of bins of equal width for the confidence of images."""
SMALLEST_SHARE = 14
"""Segments smaller than 2⁻¹⁴ of the image's pixels are counted in the bin of that size."""
MAX_REASONS = 200
"""Largest number of different errors that are counted separately."""
MAX_ERROR_LENGTH = 300
"""Characters of an error message that are kept."""


@dataclass
class RowStatistics:
    """Counts over many rows.

    Attributes:
        statuses: Rows by status.
        reasons: Failed rows by status and error.
        segments: Labelled images by number of segments.
        confidence: Labelled images by confidence bin.
        shares: Segments by k, where their share of the image's pixels is above 2⁻⁽ᵏ⁺¹⁾ and at most 2⁻ᵏ.
        names: Segments by name.
        confidence_sum: Sum of the confidence of labelled images.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    segments: Counter[int] = field(default_factory=Counter)
    confidence: Counter[int] = field(default_factory=Counter)
    shares: Counter[int] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    confidence_sum: float = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row by its status, error, size, n_segments, segments and confidence."""
        self.statuses[row["status"]] += 1
        if row["status"] != "ok":
            self._add_reason(row["status"], (row["error"] or "")[:MAX_ERROR_LENGTH])
            return
        self.segments[row["n_segments"]] += 1
        self.confidence[min(int(row["confidence"] * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)] += 1
        self.confidence_sum += row["confidence"]
        for segment in row["segments"]:
            share = segment["area"] / (row["height"] * row["width"])
            self.shares[min(math.floor(-math.log2(share)), SMALLEST_SHARE) if share > 0 else SMALLEST_SHARE] += 1
            name = segment_name(segment)
            if name:
                self.names[name] += 1

    def update(self, other: RowStatistics) -> None:
        """Add the statistics of other rows."""
        for name in ("statuses", "segments", "confidence", "shares", "names"):
            getattr(self, name).update(getattr(other, name))
        for (status, error), rows in other.reasons.items():
            self._add_reason(status, error, rows)
        self.confidence_sum += other.confidence_sum

    def _add_reason(self, status: str, error: str, rows: int = 1) -> None:
        if (status, error) not in self.reasons and len(self.reasons) >= MAX_REASONS:
            error = "other reasons"
        self.reasons[status, error] += rows
