"""Statistics over all rows of a run, collected one label shard at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.output.reader import segment_name

SHARE_BINS = 20
"""Number of bins of equal width for numbers from 0 to 1: the confidence and the score of an image."""
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
        name_images: Labelled images by the names of their segments.
        name_pixels: Pixels by the name of their segment.
        pixels: Number of pixels of labelled images.
        contacts: Images of the gallery in which segments of two names touch, by pair of names.
        covering: Images by evaluation and bin of their score `covering`.
        confidence_sum: Sum of the confidence of labelled images.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    segments: Counter[int] = field(default_factory=Counter)
    confidence: Counter[int] = field(default_factory=Counter)
    shares: Counter[int] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    name_images: Counter[str] = field(default_factory=Counter)
    name_pixels: Counter[str] = field(default_factory=Counter)
    pixels: int = 0
    contacts: Counter[tuple[str, str]] = field(default_factory=Counter)
    covering: Counter[tuple[str, int]] = field(default_factory=Counter)
    confidence_sum: float = 0.0

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row by its status, error, size, n_segments, segments and confidence."""
        self.statuses[row["status"]] += 1
        if row["status"] != "ok":
            self._add_reason(row["status"], (row["error"] or "")[:MAX_ERROR_LENGTH])
            return
        self.segments[row["n_segments"]] += 1
        self.confidence[_share_bin(row["confidence"])] += 1
        self.confidence_sum += row["confidence"]
        self.pixels += row["height"] * row["width"]
        self.name_images.update({name for segment in row["segments"] if (name := segment_name(segment))})
        for segment in row["segments"]:
            share = segment["area"] / (row["height"] * row["width"])
            self.shares[min(math.floor(-math.log2(share)), SMALLEST_SHARE) if share > 0 else SMALLEST_SHARE] += 1
            name = segment_name(segment)
            if name:
                self.names[name] += 1
                self.name_pixels[name] += segment["area"]

    def add_covering(self, evaluation: str, covering: float) -> None:
        """Count the score of an image."""
        self.covering[evaluation, _share_bin(covering)] += 1

    def update(self, other: RowStatistics) -> None:
        """Add the statistics of other rows."""
        for counter in fields(self):
            if isinstance(getattr(self, counter.name), Counter) and counter.name != "reasons":
                getattr(self, counter.name).update(getattr(other, counter.name))
        for (status, error), rows in other.reasons.items():
            self._add_reason(status, error, rows)
        self.confidence_sum += other.confidence_sum
        self.pixels += other.pixels

    def _add_reason(self, status: str, error: str, rows: int = 1) -> None:
        if (status, error) not in self.reasons and len(self.reasons) >= MAX_REASONS:
            error = "other reasons"
        self.reasons[status, error] += rows


def _share_bin(value: float) -> int:
    return max(0, min(int(value * SHARE_BINS), SHARE_BINS - 1))
