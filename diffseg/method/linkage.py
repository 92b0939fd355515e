"""Average linkage of the leaves of an image: first within each segment, then between the segments.

Axes: K leaves, G groups.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Merges = tuple[np.ndarray, np.ndarray]
"""The two nodes of each merge, int32 [K − 1, 2], and the height of each, float32 [K − 1], ascending. Leaves are the
nodes 0 … K−1, and merge i makes the node K + i."""


def average_linkage(distances: np.ndarray, weights: np.ndarray) -> list[tuple[int, int, float]]:
    """Merge the two closest groups until one is left; groups are as far apart as their members are on average.

    The mean is weighted by the sizes of the members (UPGMA, Sokal and Michener 1958), so heights never fall.

    Args:
        distances: float [G, G], symmetric.
        weights: float [G], > 0, the size of each group.

    Returns:
        For each merge, the positions of two groups and their distance. The union takes the place of the first, which
        is the lower one.
    """
    table, sizes = distances.astype(np.float64), weights.astype(np.float64)
    np.fill_diagonal(table, np.inf)
    merges = []
    for _ in range(len(table) - 1):
        a, b = sorted(divmod(int(table.argmin()), len(table)))
        merges.append((a, b, float(table[a, b])))
        row = (sizes[a] * table[a] + sizes[b] * table[b]) / (sizes[a] + sizes[b])
        table[a], table[:, a], table[b], table[:, b] = row, row, np.inf, np.inf
        table[a, a] = np.inf
        sizes[a] += sizes[b]
    return merges


def link(distances: np.ndarray, weights: np.ndarray, segment_of_leaf: np.ndarray, threshold: float) -> Merges:
    """Link the leaves of each segment below the run's threshold, and then the segments at the threshold or above it.

    The cut at the threshold is therefore the run's own label map, whatever the distances are.

    Args:
        distances: float [K, K], symmetric.
        weights: float [K], > 0, the size of each leaf.
        segment_of_leaf: int [K], ascending from 0, without gaps.
        threshold: The run's threshold, in the unit of the distances.
    """
    limit = np.float32(threshold)
    below, merges = rounded(np.nextafter(limit, np.float32(-np.inf)), np.floor), []
    nodes: list[list[int]] = []
    for segment in range(int(segment_of_leaf.max()) + 1):
        members = np.flatnonzero(segment_of_leaf == segment)
        nodes.append(members.tolist())
        for a, b, height in average_linkage(distances[np.ix_(members, members)], weights[members]):
            merges.append((min(rounded(height), below), int(members[a]), int(members[b])))
    merges.sort(key=lambda merge: merge[0])
    between = np.array([[_mean(distances, weights, a, b) for b in nodes] for a in nodes])
    first = [members[0] for members in nodes]
    sizes = np.array([weights[members].sum() for members in nodes])
    merges += [(max(rounded(h), limit), first[a], first[b]) for a, b, h in average_linkage(between, sizes)]
    return _numbered(merges, len(weights))


def rounded(height: float, towards: Callable[[float], float] = np.rint) -> np.float32:
    """Return a height with 11 significant bits, so that rows take fewer bytes; rounding keeps the order of heights."""
    if not np.isfinite(height):
        return np.float32(height)
    share, exponent = np.frexp(float(height))
    return np.float32(np.ldexp(towards(share * 2**11) / 2**11, exponent))


def _mean(distances: np.ndarray, weights: np.ndarray, a: list[int], b: list[int]) -> float:
    """Return the mean distance between the leaves of two segments, weighted by their sizes."""
    return float(weights[a] @ distances[np.ix_(a, b)] @ weights[b] / (weights[a].sum() * weights[b].sum()))


def _numbered(merges: list[tuple[np.float32, int, int]], leaves: int) -> Merges:
    """Replace the first leaf of each group by the group's node."""
    node = list(range(leaves))
    pairs = np.empty((len(merges), 2), np.int32)
    for number, (_, a, b) in enumerate(merges):
        pairs[number] = node[a], node[b]
        node[a] = leaves + number
    return pairs, np.array([height for height, _, _ in merges], np.float32)
