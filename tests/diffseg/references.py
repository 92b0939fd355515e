"""A float64 reference of the method, element by element: slow, plain and independent of torch.

Axes: P = h·w token positions, M anchors, K proposals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Grid = tuple[int, int]


def bilinear_axis(tokens: int, pixels: int, start: float = 0.0, stop: float | None = None) -> np.ndarray:
    """Return the weight of each token, float64 [pixels, tokens], with half-pixel centres and repeated edges."""
    stop = tokens if stop is None else stop
    weights = np.zeros((pixels, tokens))
    for pixel in range(pixels):
        position = start + (pixel + 0.5) * (stop - start) / pixels - 0.5
        position = min(max(position, 0.0), tokens - 1.0)
        lower = int(np.floor(position))
        weights[pixel, lower] += 1 - (position - lower)
        if position > lower:
            weights[pixel, lower + 1] += position - lower
    return weights


def aggregate_by_elements(maps: Mapping[Grid, np.ndarray], shares: Mapping[Grid, float]) -> np.ndarray:
    """Return float64 [P, P] on the finest grid: the weighted sum, with bilinear keys and repeated queries."""
    height, width = max(maps, key=lambda grid: grid[0] * grid[1])
    total = np.zeros((height, width, height * width))
    for (rows, columns), attention in maps.items():
        down, along = bilinear_axis(rows, height), bilinear_axis(columns, width)
        for y in range(height):
            for x in range(width):
                query = (y * rows // height) * columns + x * columns // width
                keys = down @ attention[query].astype(np.float64).reshape(rows, columns) @ along.T
                total[y, x] += shares[rows, columns] * (keys / keys.sum()).ravel()
    return total.reshape(height * width, height * width)


def symmetric_kl_by_elements(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return float64 [m, n]: the mean of both directions of KL, in nats."""
    p, q = p.astype(np.float64), q.astype(np.float64)
    distances = np.empty((len(p), len(q)))
    for i, row in enumerate(p):
        logs = np.log(np.maximum(row, 1e-12)) - np.log(np.maximum(q, 1e-12))
        distances[i] = (row * logs).sum(axis=1) / 2 - (q * logs).sum(axis=1) / 2
    return distances


def merge_by_elements(attention: np.ndarray, anchors: Sequence[int], tau: Sequence[float], consume: str) -> np.ndarray:
    """Merge proposals one at a time, and return float64 [K, P]."""
    proposals = []
    for anchor in anchors:
        near = symmetric_kl_by_elements(attention[anchor][None], attention)[0] < tau[0]
        near[anchor] = True
        proposals.append(attention[near].mean(axis=0))
    for threshold in tau[1:]:
        consumed: set[int] = set()
        merged = []
        for index, proposal in enumerate(proposals):
            if index in consumed:
                continue
            distances = symmetric_kl_by_elements(proposal[None], np.stack(proposals))[0]
            members = {other for other in range(len(proposals)) if distances[other] < threshold} | {index}
            if consume == "paper":
                members -= consumed
            consumed |= members
            merged.append(np.mean([proposals[member] for member in sorted(members)], axis=0))
        proposals = merged
    return np.stack(proposals)


def kmeans_by_elements(rows: np.ndarray, centres: np.ndarray, rounds: int = 300) -> np.ndarray:
    """Run Lloyd's iterations to convergence, and return float64 [K', P]; centres that end without rows are dropped."""
    centres, before = centres.copy(), None
    for _ in range(rounds):
        distances = np.stack([((rows - centre) ** 2).sum(axis=1) for centre in centres])
        assigned = distances.argmin(axis=0)
        for index in np.unique(assigned):
            centres[index] = rows[assigned == index].mean(axis=0)
        if before is not None and np.array_equal(assigned, before):
            break
        before = assigned
    return centres[np.unique(assigned)]


def upsample_by_elements(scores: np.ndarray, size: Grid, box: Sequence[float] | None = None) -> np.ndarray:
    """Resize scores bilinearly to float64 [K, H, W]. `box` is the part shown: top, left, bottom, right, in tokens."""
    _, rows, columns = scores.shape
    top, left, bottom, right = box or (0, 0, rows, columns)
    down, along = bilinear_axis(rows, size[0], top, bottom), bilinear_axis(columns, size[1], left, right)
    return np.stack([down @ score.astype(np.float64) @ along.T for score in scores])


def segment_by_elements(
    heads: Mapping[int, np.ndarray], anchors: Sequence[int], tau: Sequence[float], *, refine: bool, consume: str
) -> np.ndarray:
    """Segment as the released method does, and return labels int64 [8·side, 8·side]."""
    total, finest = sum(heads), max(heads)
    maps = {(side, side): value.astype(np.float64).mean(axis=0) for side, value in heads.items()}
    attention = aggregate_by_elements(maps, {(side, side): side / total for side in heads})
    proposals = merge_by_elements(attention, anchors, tau, consume)
    if refine:
        proposals = kmeans_by_elements(attention, proposals)
    return upsample_by_elements(proposals.reshape(-1, finest, finest), (8 * finest, 8 * finest)).argmax(axis=0)
