"""Absorb small pieces of a label map into the neighbouring label with which they share the longest border.

A piece is a connected area of one label, where each pixel has four neighbours.

Axes: H and W pixels, K proposals.
"""

from __future__ import annotations

import heapq
from collections import Counter

import numpy as np
from scipy import ndimage

from diffseg.method.decision import MARGIN_UNIT, Stat

Borders = list[dict[int, int]]
"""For each piece, its neighbours and the number of pairs of adjacent pixels across the border with each."""


def absorb(
    labels: np.ndarray, stats: np.ndarray, margins: np.ndarray, min_area: float
) -> tuple[np.ndarray, np.ndarray]:
    """Absorb pieces below a share of the region, and recompute the statistics of the labels that remain.

    Args:
        labels: int16 [H, W], see `diffseg.method.decision.Decision`.
        stats: int64 [6, K] or [8, K], see `diffseg.method.decision.Stat`.
        margins: uint8 [H, W] in units of 1 / 255. A pixel whose label changes counts with a margin of 0.
        min_area: Share of H·W, 0 to 1.

    Returns:
        The new labels and statistics, of the same types; labels that lost all their pixels are removed.
    """
    merged = absorb_small(labels, min_area * labels.size)
    margins = np.where(merged == labels, margins, 0)
    has_label = stats[Stat.AREA] > 0
    areas = np.bincount(merged.ravel(), minlength=int(has_label.sum()))
    remains = areas > 0
    names = stats[Stat.NAME :, has_label][:, remains]
    merged = (np.cumsum(remains) - 1).astype(labels.dtype)[merged]
    sums = np.bincount(merged.ravel(), weights=margins.ravel()) * MARGIN_UNIT // 255
    boxes = [[y.start, y.stop - 1, x.start, x.stop - 1] for y, x in ndimage.find_objects(merged.astype(np.int32) + 1)]
    return merged, np.stack([areas[remains], *np.array(boxes).T, sums.astype(np.int64), *names])


def absorb_small(labels: np.ndarray, min_pixels: float) -> np.ndarray:
    """Absorb pieces until each has at least `min_pixels` pixels or only one piece is left.

    The smallest piece goes first. It joins the label with the longest border around it, or the lowest of several such
    labels, and becomes one piece with all pieces of that label that it touches before the next piece is chosen.

    Args:
        labels: Integers ≥ 0, [H, W].
        min_pixels: Smallest area that remains, in pixels.

    Returns:
        [H, W] of the same type. Some labels may have no pixels any more.
    """
    pieces, label_of = _pieces(labels)
    sizes = np.bincount(pieces.ravel(), minlength=len(label_of)).tolist()
    borders = _borders(pieces, len(label_of))
    parent = list(range(len(label_of)))
    queue = [(size, piece) for piece, size in enumerate(sizes) if size < min_pixels]
    heapq.heapify(queue)
    while queue:
        size, piece = heapq.heappop(queue)
        if parent[piece] != piece or sizes[piece] != size or not borders[piece]:
            continue
        lengths: Counter[int] = Counter()
        for neighbour, length in borders[piece].items():
            lengths[label_of[neighbour]] += length
        label = min(lengths, key=lambda candidate: (-lengths[candidate], candidate))
        members = [piece, *(neighbour for neighbour in borders[piece] if label_of[neighbour] == label)]
        union = max(members, key=lambda member: (len(borders[member]), -member))
        _unite(union, members, borders, parent)
        label_of[union], sizes[union] = label, sum(sizes[member] for member in members)
        if sizes[union] < min_pixels:
            heapq.heappush(queue, (sizes[union], union))
    roots = [_root(piece, parent) for piece in range(len(parent))]
    return np.array(label_of, dtype=labels.dtype)[roots][pieces]


def _pieces(labels: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return the piece of each pixel, int32 [H, W], and the label of each piece."""
    pieces = np.empty(labels.shape, dtype=np.int32)
    label_of: list[int] = []
    for label, box in enumerate(ndimage.find_objects(labels.astype(np.int32) + 1)):
        if box is not None:
            inside = labels[box] == label
            numbered, count = ndimage.label(inside)
            pieces[box][inside] = numbered[inside] - 1 + len(label_of)
            label_of += [label] * count
    return pieces, label_of


def _borders(pieces: np.ndarray, count: int) -> Borders:
    """Return the neighbours of each of `count` pieces and the lengths of the borders with them."""
    sides = [(pieces[1:], pieces[:-1]), (pieces[:, 1:], pieces[:, :-1])]
    differ = [(a[a != b], b[a != b]) for a, b in sides]
    pairs = np.concatenate([a.astype(np.int64) * count + b for a, b in differ])
    borders: Borders = [{} for _ in range(count)]
    for pair, length in zip(*(array.tolist() for array in np.unique(pairs, return_counts=True)), strict=True):
        a, b = divmod(pair, count)
        borders[a][b] = borders[a].get(b, 0) + length
        borders[b][a] = borders[b].get(a, 0) + length
    return borders


def _unite(union: int, members: list[int], borders: Borders, parent: list[int]) -> None:
    """Turn the pieces `members` into one piece with the number `union`, in place."""
    for piece in members:
        if piece != union:
            parent[piece] = union
            for neighbour, length in borders[piece].items():
                del borders[neighbour][piece]
                if neighbour != union:
                    total = borders[union].get(neighbour, 0) + length
                    borders[union][neighbour] = borders[neighbour][union] = total
            borders[piece] = {}


def _root(piece: int, parent: list[int]) -> int:
    """Return the piece that `piece` is part of now."""
    while parent[piece] != piece:
        piece = parent[piece]
    return piece
