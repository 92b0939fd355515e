"""Small pieces of a label map go to the neighbour that they share the longest border with.

Axes: H and W pixels, N pieces: connected areas of one label, each pixel with four neighbours.
"""

from __future__ import annotations

import heapq
from collections import Counter

import numpy as np
from scipy import ndimage

from diffseg.method.decide import MARGIN_UNIT


def absorb(
    labels: np.ndarray, stats: np.ndarray, margins: np.ndarray, min_area: float
) -> tuple[np.ndarray, np.ndarray]:
    """The labels and the stats of a `diffseg.method.decide.Decision` once pieces below a share of the region are absorbed.

    labels: int16 [H, W]. stats: int64 [6 or 8, K]. margins: uint8 [H, W] in units of 1 / 255; a pixel whose label
    changes has none any more. min_area: share of H·W, 0 to 1.
    """
    whole = absorb_small(labels, min_area * labels.size)
    margins = np.where(whole == labels, margins, 0)
    areas = np.bincount(whole.ravel(), minlength=int((stats[0] > 0).sum()))
    named = stats[6:, stats[0] > 0][:, areas > 0]
    whole = (np.cumsum(areas > 0) - 1).astype(labels.dtype)[whole]
    sums = np.bincount(whole.ravel(), weights=margins.ravel()) * MARGIN_UNIT // 255
    boxes = [[y.start, y.stop - 1, x.start, x.stop - 1] for y, x in ndimage.find_objects(whole.astype(np.int32) + 1)]
    return whole, np.stack([areas[areas > 0], *np.array(boxes).T, sums.astype(np.int64), *named])


def absorb_small(labels: np.ndarray, least: float) -> np.ndarray:
    """Label map [H, W] in which every piece has `least` pixels or more, unless it is the only one.

    labels: integers ≥ 0, [H, W]; the result is of the same type, and labels may be gone from it. The smallest piece
    goes first, to the label with the longest border around it (of equals the lowest), and is one piece with all of
    that label that it touches before the next is looked at.
    """
    pieces, label_of = _pieces(labels)
    sizes = np.bincount(pieces.ravel(), minlength=len(label_of)).tolist()
    borders = _borders(pieces, len(label_of))
    parent = list(range(len(label_of)))
    waiting = [(size, piece) for piece, size in enumerate(sizes) if size < least]
    heapq.heapify(waiting)
    while waiting:
        size, piece = heapq.heappop(waiting)
        if parent[piece] != piece or sizes[piece] != size or not borders[piece]:
            continue
        lengths: Counter[int] = Counter()
        for other, length in borders[piece].items():
            lengths[label_of[other]] += length
        label = min(lengths, key=lambda candidate: (-lengths[candidate], candidate))
        joined = [piece, *(other for other in borders[piece] if label_of[other] == label)]
        whole = max(joined, key=lambda each: (len(borders[each]), -each))
        _join(whole, joined, borders, parent)
        label_of[whole], sizes[whole] = label, sum(sizes[each] for each in joined)
        if sizes[whole] < least:
            heapq.heappush(waiting, (sizes[whole], whole))
    roots = [_root(piece, parent) for piece in range(len(parent))]
    return np.array(label_of, dtype=labels.dtype)[roots][pieces]


def _pieces(labels: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """int32 [H, W], numbers of the connected areas of one label, and the label of each number."""
    pieces = np.empty(labels.shape, dtype=np.int32)
    label_of: list[int] = []
    for label, box in enumerate(ndimage.find_objects(labels.astype(np.int32) + 1)):
        if box is not None:
            inside = labels[box] == label
            numbered, count = ndimage.label(inside)
            pieces[box][inside] = numbered[inside] - 1 + len(label_of)
            label_of += [label] * count
    return pieces, label_of


def _borders(pieces: np.ndarray, count: int) -> list[dict[int, int]]:
    """For each piece its neighbours, and how many pairs of pixels lie side by side across their border."""
    sides = [(pieces[1:], pieces[:-1]), (pieces[:, 1:], pieces[:, :-1])]
    differ = [(one[one != other], other[one != other]) for one, other in sides]
    pairs = np.concatenate([one.astype(np.int64) * count + other for one, other in differ])
    borders: list[dict[int, int]] = [{} for _ in range(count)]
    for pair, length in zip(*(array.tolist() for array in np.unique(pairs, return_counts=True)), strict=True):
        one, other = divmod(pair, count)
        borders[one][other] = borders[one].get(other, 0) + length
        borders[other][one] = borders[other].get(one, 0) + length
    return borders


def _join(whole: int, joined: list[int], borders: list[dict[int, int]], parent: list[int]) -> None:
    """Make `joined` one piece, known as `whole`, in place."""
    for piece in joined:
        if piece != whole:
            parent[piece] = whole
            for other, length in borders[piece].items():
                del borders[other][piece]
                if other != whole:
                    borders[whole][other] = borders[other][whole] = borders[whole].get(other, 0) + length
            borders[piece] = {}


def _root(piece: int, parent: list[int]) -> int:
    while parent[piece] != piece:
        piece = parent[piece]
    return piece
