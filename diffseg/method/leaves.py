"""Find the leaves of an image below its segments, and link them into levels (`diffseg.levels`).

The leaves come from the same attention as the segments, by merging at a lower threshold. A leaf belongs to the segment
that has most of its positions, and divides no other segment, so the label map itself stays as it is.

Axes: B images, K proposals, L fine proposals, h and w positions of the working grid, H and W pixels, S segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from diffseg.attention.maps import Grid
from diffseg.levels import cell_centres, cell_size
from diffseg.method.linkage import link
from diffseg.segmentation import IGNORE, Box, Levels, Segmentation

LEAF_SHARE = 0.5
"""Threshold of the leaves as a share of the run's threshold. At a quarter there are twice as many leaves, which cost
twice the bytes and do not agree better with ground truth (docs/levels.md)."""

LEAF_ANCHOR_STEP = 3
"""The leaves are merged from every third anchor, which costs a third of the time."""

MAX_LEAVES = 64
"""Fine proposals that are used for an image, those with the most positions."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LeafSignals:
    """What levels are made of, on the device.

    Attributes:
        scores: float32 [B, K, h, w], scores of the proposals of the segments, before any further stage.
        fine_scores: float32 [B, L, h, w], scores of the proposals at the lower threshold.
        distances: float32 [B, K + L, K + L], distances between the proposals, those of the segments first.
    """

    scores: torch.Tensor
    fine_scores: torch.Tensor
    distances: torch.Tensor

    def of_image(self, image: int) -> LeafSignals:
        """Return the signals of an image, without the axis of the batch."""
        return LeafSignals(
            scores=self.scores[image], fine_scores=self.fine_scores[image], distances=self.distances[image]
        )


def levels_of(
    segmentation: Segmentation,
    scores: np.ndarray,
    fine_scores: np.ndarray,
    distances: np.ndarray,
    *,
    threshold: float,
    content: Box,
    region: Box | None = None,
) -> Levels:
    """Return the levels of a label map.

    Args:
        segmentation: The label map.
        scores: float32 [K, h, w], see `LeafSignals`.
        fine_scores: float32 [L, h, w].
        distances: float32 [K + L, K + L].
        threshold: The run's threshold, in the unit of the distances.
        content: The part of the token grid that the region shows, in tokens.
        region: The labelled region, in whole pixels of the image; None for all of it.
    """
    labels = segmentation.labels
    region = region or Box(top=0, left=0, bottom=labels.shape[0], right=labels.shape[1])
    view = _View(labels, scores.shape[1:], content, region)
    tokens = segments_on_grid(labels, (scores.shape[1], scores.shape[2]), content, region)
    fine = fine_scores[_largest(fine_scores)]
    distances = _without_unused(distances, len(scores), _largest(fine_scores))
    owner = _owners(fine, tokens)
    cell = cell_size(*labels.shape)
    segments = cell_centres(labels, cell)
    sampled = view.sample(fine, cell)
    coarse_of_token = scores.argmax(axis=0)
    numbers = np.zeros(segments.shape, np.uint8)
    rows: list[int] = []  # of the table of distances
    weights: list[int] = []
    segment_of_leaf: list[int] = []
    for segment in range(len(segmentation.segments)):
        cells = segments == segment
        own = np.flatnonzero(owner == segment)
        order, sizes, ranks = _leaves_by_size(sampled[own][:, cells])
        if len(order) > 1:
            numbers[cells] = ranks
            rows += (len(scores) + own[order]).tolist()
            weights += sizes.tolist()
            segment_of_leaf += [segment] * len(order)
        else:
            rows.append(_most_frequent(coarse_of_token, tokens == segment, view, segmentation.segments[segment].bbox))
            weights.append(max(1, int(cells.sum())))
            segment_of_leaf.append(segment)
    of_leaf = np.array(segment_of_leaf, np.int32)
    table = distances[np.ix_(rows, rows)]
    pairs, heights = link((table + table.T) / 2, np.array(weights, np.float64), of_leaf, threshold)
    margins = _Margins(scores, fine, tokens, [row - len(scores) for row in rows], of_leaf, segmentation)
    return Levels(
        numbers=numbers,
        segment_of_leaf=of_leaf,
        leaf_confidences=_rounded([margins.of([leaf]) for leaf in range(len(rows))]),
        pairs=pairs,
        heights=heights,
        confidences=_rounded([margins.of(node) for node in _members(pairs, len(rows))]),
    )


def _leaves_by_size(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order the leaves of a segment by the number of cells that they win.

    Args:
        scores: float32 [N, C], the score of each leaf in each cell of the segment.

    Returns:
        The leaves that win cells, the largest first; the number of cells of each; and for each cell the place of its
        leaf in that order, uint8 [C].
    """
    winners = scores.argmax(axis=0) if len(scores) else np.zeros(0, np.int64)
    sizes = np.bincount(winners, minlength=len(scores))
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    ranks = np.zeros(len(scores), np.uint8)
    ranks[order] = np.arange(len(order))
    return order, sizes[order], ranks[winners]


def segments_on_grid(labels: np.ndarray, grid: Grid, content: Box, region: Box) -> np.ndarray:
    """Return the label at the centre of each position of a grid, int64 [h, w]; `IGNORE` outside the region.

    Args:
        labels: uint16 [H, W].
        grid: Height and width of the grid, in tokens.
        content: The part of the grid that the region fills, in tokens.
        region: The labelled region, in whole pixels of the image.
    """
    pixels, inside = [], []
    for count, start, stop, first, last in (
        (grid[0], content.top, content.bottom, region.top, region.bottom),
        (grid[1], content.left, content.right, region.left, region.right),
    ):
        share = (np.arange(count) + 0.5 - start) / (stop - start)
        inside.append((share >= 0) & (share < 1))
        pixels.append(np.clip(first + np.floor(share * (last - first)), first, last - 1).astype(np.int64))
    found = labels[pixels[0][:, None], pixels[1]].astype(np.int64)
    return np.where(inside[0][:, None] & inside[1], found, IGNORE)


def _rounded(confidences: list[float]) -> np.ndarray:
    """Return confidences in steps of 1/256, float32, which take fewer bytes."""
    return np.rint(np.array(confidences, np.float32) * 256) / np.float32(256)


class _View:
    """Which pixels of the image the positions of the working grid show, and the other way round."""

    def __init__(self, labels: np.ndarray, grid: tuple[int, ...], content: Box, region: Box) -> None:
        self.labels = labels
        self._axes = (
            (grid[0], content.top, content.bottom, region.top, region.bottom),
            (grid[1], content.left, content.right, region.left, region.right),
        )

    def sample(self, maps: np.ndarray, cell: int) -> np.ndarray:
        """Interpolate maps [L, h, w] at the centres of the cells, float32 [L, rows, columns]."""
        down, along = (self._weights(axis, cell, length) for axis, length in enumerate(self.labels.shape))
        # With torch, because its number of threads is a setting of the worker.
        return torch.matmul(down, torch.matmul(torch.from_numpy(maps), along.T)).numpy()

    def _weights(self, axis: int, cell: int, length: int) -> torch.Tensor:
        """Return the matrix of linear interpolation at the centres of the cells along an axis, float32 [cells, n]."""
        count, start, stop, first, last = self._axes[axis]
        pixels = np.minimum(np.arange(0, length, cell) + cell // 2, length - 1)
        positions = start + (pixels + 0.5 - first) / (last - first) * (stop - start) - 0.5
        positions = np.clip(positions, 0, count - 1)
        lower = np.minimum(positions.astype(np.int64), max(count - 2, 0))
        weights = np.zeros((len(pixels), count), np.float32)
        weights[np.arange(len(pixels)), lower] = 1 - (positions - lower)
        weights[np.arange(len(pixels)), np.minimum(lower + 1, count - 1)] += positions - lower
        return torch.from_numpy(weights)

    def token_at(self, x: float, y: float) -> tuple[int, int]:
        """Return the position of the grid that shows a pixel."""
        found = []
        for value, (count, start, stop, first, last) in zip((y, x), self._axes, strict=True):
            token = start + (value + 0.5 - first) / (last - first) * (stop - start)
            found.append(int(np.clip(token, 0, count - 1)))
        return found[0], found[1]


def _largest(fine_scores: np.ndarray) -> np.ndarray:
    """Return the indices of the fine proposals that are highest somewhere: at most `MAX_LEAVES`, ascending."""
    sizes = np.bincount(fine_scores.argmax(axis=0).ravel(), minlength=len(fine_scores))
    largest = np.argsort(-sizes, kind="stable")[:MAX_LEAVES]
    return np.sort(largest[sizes[largest] > 0])


def _without_unused(distances: np.ndarray, coarse: int, used: np.ndarray) -> np.ndarray:
    kept = np.concatenate([np.arange(coarse), coarse + used])
    return distances[np.ix_(kept, kept)]


def _owners(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the segment with most of the positions of each proposal, int64 [K]; −1 for a proposal without any."""
    best, inside = scores.argmax(axis=0), tokens != IGNORE
    if not inside.any():
        return np.full(len(scores), -1)
    counts = np.zeros((len(scores), int(tokens[inside].max()) + 1), np.int64)
    np.add.at(counts, (best[inside], tokens[inside]), 1)
    return np.where(counts.any(axis=1), counts.argmax(axis=1), -1)


def _most_frequent(proposals: np.ndarray, inside: np.ndarray, view: _View, bbox: tuple[int, int, int, int]) -> int:
    """Return the proposal with most of a segment's positions; if it has none, that at the middle of its box."""
    if inside.any():
        return int(np.bincount(proposals[inside]).argmax())
    x, y, width, height = bbox
    return int(proposals[view.token_at(x + width / 2, y + height / 2)])


def _members(pairs: np.ndarray, leaves: int) -> list[list[int]]:
    """Return the leaves of each merged node."""
    nodes = [[leaf] for leaf in range(leaves)]
    for a, b in pairs.tolist():
        nodes.append(nodes[a] + nodes[b])
    return nodes[leaves:]


class _Margins:
    """Confidences of nodes: the mean margin between the best score inside a node and the best one outside.

    The margin is taken at the positions of the node. A whole segment has its own confidence, which is measured at
    pixels; a part of a segment is compared by the scores of fine proposals, and several segments by those of the
    segments' proposals.
    """

    def __init__(
        self,
        scores: np.ndarray,
        fine: np.ndarray,
        tokens: np.ndarray,
        fine_of_leaf: list[int],
        segment_of_leaf: np.ndarray,
        segmentation: Segmentation,
    ) -> None:
        inside = tokens != IGNORE
        self._scores, self._fine, self._tokens = scores[:, inside], fine[:, inside], tokens[inside]
        self._owner = _owners(scores, tokens)
        self._fine_of_leaf, self._segment_of_leaf = np.array(fine_of_leaf), segment_of_leaf
        self._of_segment = [segment.confidence for segment in segmentation.segments]
        self._count = np.bincount(segment_of_leaf)

    def of(self, leaves: list[int]) -> float:
        """Return the confidence of a node, 0 to 1."""
        segments = np.unique(self._segment_of_leaf[leaves])
        if len(segments) == 1 and len(leaves) == self._count[segments[0]]:
            return self._of_segment[segments[0]]
        if len(segments) == 1:
            candidates = self._fine_of_leaf[self._segment_of_leaf == segments[0]]
            inside = np.isin(np.arange(len(self._fine)), self._fine_of_leaf[leaves])
            tokens = np.flatnonzero(self._tokens == segments[0])
            tokens = tokens[inside[candidates[self._fine[np.ix_(candidates, tokens)].argmax(axis=0)]]]
            scores = self._fine
        else:
            inside = np.isin(self._owner, segments)
            tokens = np.flatnonzero(np.isin(self._tokens, segments))
            scores = self._scores
        if not len(tokens) or not inside.any():
            return float(np.mean([self._of_segment[segment] for segment in segments]))
        best = scores[inside][:, tokens].max(axis=0)
        second = scores[~inside][:, tokens].max(axis=0, initial=0.0)
        return float(np.clip((best - second) / np.maximum(best, np.finfo(np.float32).tiny), 0, 1).mean())
