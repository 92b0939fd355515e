"""The levels of a label map: the parts of its segments, and the order in which parts and segments merge.

A row of a run holds the label map at the run's threshold. Its levels refine and coarsen that map: every segment
consists of one or more leaves, and the leaves merge step by step until one segment is left. A cut applies the first of
these merges. This module does not import torch, so that labels can be cut again without a model.

Axes: H and W pixels, h and w cells of a coarse grid, K leaves, S segments of the row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from diffseg.segmentation import IGNORE, Levels, Segment, Segmentation

LONGEST_SIDE = 160
"""Largest number of cells along the longer side of an image: borders between the leaves of one segment are known to
this precision. The attention that they come from has 32 to 128 positions a side."""

SEGMENTS_EXPONENT = 0.45
"""Chosen on photographs at even positions (docs/levels.md)."""

NEIGHBOURS = ((0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))
"""Steps in rows and columns to the neighbouring cells, the nearest first."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Which level of an image to take; exactly one of the three is given.

    Attributes:
        tau: Merge what lies closer than this threshold, in nats of symmetric KL.
        segments: Merge until at most this many segments are left.
        stable: Choose the level of each image by itself, see `best_level`.
    """

    tau: float | None = None
    segments: int | None = None
    stable: bool = False

    def __post_init__(self) -> None:
        if (self.tau is not None) + (self.segments is not None) + self.stable != 1:
            raise ValueError("expected only one of tau, segments and stable")
        if self.tau is not None and not self.tau >= 0:
            raise ValueError(f"tau={self.tau}: expected a threshold of 0 or more")
        if self.segments is not None and self.segments < 1:
            raise ValueError(f"segments={self.segments}: expected at least 1")

    def __str__(self) -> str:
        if self.stable:
            return "stable"
        return f"tau {self.tau:g}" if self.tau is not None else f"{self.segments} segments"


def merges_of(levels: Levels, cut: Cut, threshold: float, areas: np.ndarray | None = None) -> int:
    """Return how many merges a cut applies.

    Args:
        levels: The levels.
        cut: The cut.
        threshold: Threshold of the cut, in the unit of `heights`; not used if the cut has none.
        areas: Pixels of each leaf, [K], which the choice `stable` needs.
    """
    if cut.stable:
        return best_level(levels, np.ones(levels.leaves) if areas is None else areas)
    if cut.segments is not None:
        return max(0, levels.leaves - cut.segments)
    return int(np.searchsorted(levels.heights, np.float32(threshold)))


def groups_after(levels: Levels, merges: int) -> tuple[np.ndarray, np.ndarray]:
    """Apply the first merges.

    Returns:
        The group of each leaf, int32 [K], numbered by the first leaf of each; and the confidence of each group.
    """
    node_of_leaf = np.arange(levels.leaves)
    for number, (a, b) in enumerate(levels.pairs[:merges].tolist()):
        node_of_leaf[(node_of_leaf == a) | (node_of_leaf == b)] = levels.leaves + number
    nodes, first, group = np.unique(node_of_leaf, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(nodes), np.int32)
    rank[order] = np.arange(len(nodes))
    confidences = np.concatenate([levels.leaf_confidences, levels.confidences])[nodes[order]]
    return rank[group], confidences


def leaf_map(levels: Levels, labels: np.ndarray) -> np.ndarray:
    """Return the leaf of each pixel, uint16 [H, W], from the label map of the row, with `IGNORE` where it has it.

    The cell of a pixel may belong to another segment than the pixel; then a neighbouring cell of the pixel's
    segment gives the number, or, if no cell does, the pixel belongs to the largest leaf.
    """
    cell = cell_size(*labels.shape)
    # Row and column 0 stand for a border of cells without a segment.
    segments = np.pad(cell_centres(labels, cell), 1, constant_values=IGNORE)
    numbers = np.pad(levels.numbers, 1)
    first = np.searchsorted(levels.segment_of_leaf, np.arange(labels[labels != IGNORE].max(initial=0) + 1))
    rows, columns = (np.arange(length) // cell + 1 for length in labels.shape)
    matching = segments[rows[:, None], columns] == labels
    number = np.where(matching, numbers[rows[:, None], columns], 0)
    y, x = np.nonzero(~matching & (labels != IGNORE))
    for down, right in NEIGHBOURS:
        if not len(y):
            break
        at = rows[y] + down, columns[x] + right
        found = segments[at] == labels[y, x]
        number[y[found], x[found]] = numbers[at][found]
        y, x = y[~found], x[~found]
    leaves = np.full(labels.shape, IGNORE, np.uint16)
    inside = labels != IGNORE
    leaves[inside] = first[labels[inside]] + number[inside]
    return leaves


def cut_again(
    levels: Levels, labels: np.ndarray, segments: Sequence[Segment], cut: Cut, threshold: float = 0.0
) -> Segmentation:
    """Return the label map at another level.

    A segment that stays whole keeps its confidence. A merged segment takes the name with the largest sum of area
    times name score, and that sum's share of its area is its name score.

    Args:
        labels: The label map of the row, uint16 [H, W].
        segments: The segments of the row.
        cut: The level.
        threshold: Threshold of the cut, in the unit of the heights; not used if the cut has none.
    """
    pieces = _segments_as_pieces(levels, labels, segments, cut, threshold) or _leaves_as_pieces(levels, labels)
    merges = merges_of(levels, cut, threshold, pieces.areas)
    leaf_groups, confidences = groups_after(levels, merges)
    groups = leaf_groups[pieces.first_leaf]
    table = np.full(IGNORE + 1, IGNORE, np.uint16)
    made: list[Segment] = []
    for group, confidence in enumerate(confidences.tolist()):
        members = np.flatnonzero((groups == group) & (pieces.areas > 0))
        if not len(members):  # a leaf that no pixel belongs to
            continue
        table[members] = len(made)
        of_leaves = levels.segment_of_leaf[leaf_groups == group]
        is_whole = of_leaves[0] == of_leaves[-1] and len(of_leaves) == np.sum(levels.segment_of_leaf == of_leaves[0])
        name, score = _vote(segments, levels.segment_of_leaf[pieces.first_leaf[members]], pieces.areas[members])
        (left, top), (right, bottom) = pieces.boxes[members, :2].min(axis=0), pieces.boxes[members, 2:].max(axis=0)
        made.append(
            Segment(
                id=len(made),
                area=int(pieces.areas[members].sum()),
                bbox=(int(left), int(top), int(right - left), int(bottom - top)),
                confidence=segments[of_leaves[0]].confidence if is_whole else confidence,
                name=name,
                name_score=score,
            )
        )
    total = sum(segment.area for segment in made)
    confidence = sum(segment.area * segment.confidence for segment in made) / total if total else 0.0
    return Segmentation(labels=table[pieces.map], segments=tuple(made), confidence=confidence)


class _Pieces(NamedTuple):
    """The pieces that a level joins: leaves, or whole segments where no segment is divided.

    Attributes:
        map: Piece of each pixel, uint16 [H, W], and `IGNORE`.
        first_leaf: A leaf of each piece.
        areas: Pixels of each piece.
        boxes: Left, top, right and bottom of each piece, int64 [pieces, 4], exclusive on the right and at the bottom.
    """

    map: np.ndarray
    first_leaf: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray


def _segments_as_pieces(
    levels: Levels, labels: np.ndarray, segments: Sequence[Segment], cut: Cut, threshold: float
) -> _Pieces | None:
    """Return the segments if a cut only joins segments, which saves finding the leaf of each pixel."""
    within = levels.leaves - len(segments)
    if cut.stable or merges_of(levels, cut, threshold) < within:
        return None
    x, y, width, height = np.array([segment.bbox for segment in segments]).reshape(-1, 4).T
    return _Pieces(
        map=labels,
        first_leaf=np.searchsorted(levels.segment_of_leaf, np.arange(len(segments))),
        areas=np.array([segment.area for segment in segments], np.int64),
        boxes=np.stack([x, y, x + width, y + height], axis=1),
    )


def _leaves_as_pieces(levels: Levels, labels: np.ndarray) -> _Pieces:
    leaves = leaf_map(levels, labels)
    boxes = np.zeros((levels.leaves, 4), np.int64)
    found = ndimage.find_objects(np.where(leaves == IGNORE, 0, leaves.astype(np.int32) + 1))
    for leaf, box in enumerate(found):
        if box is not None:
            boxes[leaf] = box[1].start, box[0].start, box[1].stop, box[0].stop
    areas = np.bincount(leaves[leaves != IGNORE], minlength=levels.leaves)
    return _Pieces(map=leaves, first_leaf=np.arange(levels.leaves), areas=areas, boxes=boxes)


def cell_size(height: int, width: int) -> int:
    """Return the side of a cell in pixels for an image of this size."""
    return max(1, -(-max(height, width) // LONGEST_SIDE))


def cell_centres(values: np.ndarray, cell: int) -> np.ndarray:
    """Return the values [H, W] at the pixel in the middle of each cell, [h, w]."""
    rows, columns = (np.minimum(np.arange(0, length, cell) + cell // 2, length - 1) for length in values.shape)
    return values[rows[:, None], columns]


def _vote(segments: Sequence[Segment], of_leaves: np.ndarray, areas: np.ndarray) -> tuple[str | None, float | None]:
    """Return the name of the union of leaves, and its score; (None, None) in a run without names."""
    votes: defaultdict[str | None, float] = defaultdict(float)
    for segment, area in zip(of_leaves.tolist(), areas.tolist(), strict=True):
        score = segments[segment].name_score
        if score is None:
            return segments[segment].name, None
        votes[segments[segment].name] += area * score
    name = max(votes, key=lambda candidate: (votes[candidate], candidate or ""))
    return name, min(1.0, votes[name] / max(1, int(areas.sum())))


def best_level(levels: Levels, areas: np.ndarray) -> int:
    """Return how many merges give the best level of an image, judged without ground truth.

    It is the level whose mean confidence, weighted by area, times the number of segments to the power of
    `SEGMENTS_EXPONENT` is highest. A level with one segment is taken only where there is no other.

    Args:
        levels: The levels.
        areas: Pixels of each leaf, [K].
    """
    values = []
    for merges in range(max(1, levels.leaves - 1)):
        groups, confidences = groups_after(levels, merges)
        shares = np.bincount(groups, weights=areas, minlength=len(confidences)) / max(1, areas.sum())
        values.append(float(shares @ confidences) * len(confidences) ** SEGMENTS_EXPONENT)
    return int(np.argmax(values))
