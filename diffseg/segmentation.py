"""Label maps: the value that stands for no segment, and the pixels that a protocol looks at.

Axes: H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

IGNORE = 65535
"""Label of pixels that no segment claims: those outside of a centre crop."""

BACKGROUND = "background"
"""What a segment is called that none of the names calls."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle, half-open: rows [top, bottom), columns [left, right)."""

    top: float
    left: float
    bottom: float
    right: float


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment of a label map.

    id: its label. area: pixels. bbox: (x, y, width, height) in pixels. confidence: 0 to 1, mean margin of its pixels.
    name: what it is called, `background`, or None where it has no name; name_score: how sure that is, 0 to 1, None
    where nothing was named.
    """

    id: int
    area: int
    bbox: tuple[int, int, int, int]
    confidence: float
    name: str | None = None
    name_score: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """labels: uint16 [H, W], 0 … K−1, all present, and `IGNORE`. segments: one a label, in order.

    confidence: 0 to 1, mean margin between best and second proposal over the labelled pixels.
    """

    labels: np.ndarray
    segments: tuple[Segment, ...]
    confidence: float


def borders(labels: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels whose right or lower neighbour has another label."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge
