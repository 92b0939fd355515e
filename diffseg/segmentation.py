"""The result of a segmentation: a label map and its segments. This module does not import torch.

Axes: H and W pixels, K segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

IGNORE = 65535
"""Label of pixels that belong to no segment, because they lie outside a centre crop."""

BACKGROUND = "background"
"""Name of a segment that shows none of the given names."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A half-open rectangle: rows [top, bottom) and columns [left, right)."""

    top: float
    left: float
    bottom: float
    right: float


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment of a label map.

    Attributes:
        id: Its label.
        area: Number of its pixels.
        bbox: Bounding box (x, y, width, height) in pixels.
        confidence: Mean over its pixels of the margin between the best and the second proposal, 0 to 1.
        name: One of the given names, `background`, or None if it has no name.
        name_score: Score of the name, 0 to 1; None unless segments are named.
    """

    id: int
    area: int
    bbox: tuple[int, int, int, int]
    confidence: float
    name: str | None = None
    name_score: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Levels:
    """The leaves of an image and their merges.

    Leaves are numbered by segment: those of segment 0 come first. Merge number i makes the node K + i of two nodes that
    exist already; a node below K is a leaf. Heights never fall.

    Attributes:
        numbers: uint8 [h, w], number of the leaf within its segment, 0 for the largest, in square cells of
            `diffseg.levels.cell_size(H, W)` pixels. It holds for the segment at the centre of the cell.
        segment_of_leaf: int32 [K], ascending.
        leaf_confidences: float32 [K], 0 to 1.
        pairs: int32 [K − 1, 2], the two nodes of each merge.
        heights: float32 [K − 1], distance at which they merge, in the unit of the run's distance (nats for `kl`).
        confidences: float32 [K − 1], confidence of each merged node, 0 to 1.
    """

    numbers: np.ndarray
    segment_of_leaf: np.ndarray
    leaf_confidences: np.ndarray
    pairs: np.ndarray
    heights: np.ndarray
    confidences: np.ndarray

    @property
    def leaves(self) -> int:
        """Number of leaves, K."""
        return len(self.segment_of_leaf)


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Features of an image and of its segments, pooled from the model's pass; see `diffseg.method.segment_features`.

    Attributes:
        image: float16 [256], of all labelled pixels.
        segments: float16 [K, 256], of each segment.
    """

    image: np.ndarray
    segments: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """The label map of an image.

    Attributes:
        labels: uint16 [H, W], the labels 0 … K−1, all of which occur, and `IGNORE`.
        segments: The segment of each label, in order.
        confidence: Mean over the labelled pixels of the margin between the best and the second proposal, 0 to 1.
        levels: Its levels, at which it can be refined and coarsened; None unless they were requested.
        features: Its features; None unless they were requested, or names depend on them.
        within_rho: Mean correlation of positions of one segment over variants of the image, −1 to 1, see
            `diffseg.variants.correlation`; None unless it was requested, or if no segment has two positions.
        between_rho: Mean correlation of positions of different segments; None unless it was requested, or if there is
            only one segment.
    """

    labels: np.ndarray
    segments: tuple[Segment, ...]
    confidence: float
    levels: Levels | None = None
    features: Features | None = None
    within_rho: float | None = None
    between_rho: float | None = None


def borders(labels: np.ndarray) -> np.ndarray:
    """Return the pixels of a label map [H, W] whose right or lower neighbour has another label, bool [H, W]."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge
