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
    segment gives the number, or, if there is none, the pixel belongs to the largest leaf.
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
    leaves = leaf_map(levels, labels)
    areas = np.bincount(leaves[leaves != IGNORE], minlength=levels.leaves)
    groups, confidences = groups_after(levels, merges_of(levels, cut, threshold, areas))
    table = np.full(IGNORE + 1, IGNORE, np.uint16)
    table[: len(groups)] = groups
    cut_labels = table[leaves]
    boxes = ndimage.find_objects(np.where(cut_labels == IGNORE, 0, cut_labels.astype(np.int32) + 1))
    made, kept = [], [group for group, box in enumerate(boxes) if box is not None]
    for label, group in enumerate(kept):
        rows, columns = boxes[group]
        members = np.flatnonzero(groups == group)
        of_members = np.unique(levels.segment_of_leaf[members])
        whole = len(of_members) == 1 and len(members) == np.sum(levels.segment_of_leaf == of_members[0])
        name, score = _vote(segments, levels.segment_of_leaf[members], areas[members])
        made.append(
            Segment(
                id=label,
                area=int(areas[members].sum()),
                bbox=(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start),
                confidence=segments[of_members[0]].confidence if whole else float(confidences[group]),
                name=name,
                name_score=score,
            )
        )
    if len(kept) < len(confidences):  # a leaf that no pixel belongs to
        relabel = np.full(IGNORE + 1, IGNORE, np.uint16)
        relabel[kept] = np.arange(len(kept))
        cut_labels = relabel[cut_labels]
    total = sum(segment.area for segment in made)
    confidence = sum(segment.area * segment.confidence for segment in made) / total if total else 0.0
    return Segmentation(labels=cut_labels, segments=tuple(made), confidence=confidence)


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
