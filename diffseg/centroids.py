"""Several vectors for a name instead of one: spherical k-means that repeats exactly (methods after OVDiff and DiCLIP).

Axes: N vectors, E numbers of each, K centroids.
"""

from __future__ import annotations

import numpy as np

DECIMALS = 9
"""Cosines are compared after rounding to so many decimals, so that the order of a sum decides nothing."""

MOST_ROUNDS = 100
"""Largest number of rounds; most data need fewer than ten."""


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors [..., E] in float64, scaled to length 1; a zero vector stays zero."""
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def k_means(vectors: np.ndarray, count: int) -> np.ndarray:
    """Return the centroids of vectors by their cosines (spherical k-means; Dhillon & Modha, 2001).

    The vectors are sorted first, so that their order changes no bit. The first centroid begins at the vector closest to
    the mean, and each further one at the vector that is least like those before it: no random numbers are needed.

    Args:
        vectors: float [N, E], N ≥ 1.
        count: Largest number of centroids, at least 1. Fewer are returned where fewer vectors differ in direction.

    Returns:
        float64 [K, E], each of length 1, in a fixed order.
    """
    rows = unit(vectors)
    rows = rows[np.lexsort(rows.T[::-1])]
    if count == 1:
        return unit(rows.mean(axis=0, keepdims=True))
    centroids = _first_centroids(rows, count)
    nearest = np.full(len(rows), -1)
    for _ in range(MOST_ROUNDS):
        before, nearest = nearest, np.round(rows @ centroids.T, DECIMALS).argmax(axis=1)
        if np.array_equal(before, nearest):
            break
        centroids = unit(np.stack([rows[nearest == number].mean(axis=0) for number in np.unique(nearest)]))
    return centroids


def _first_centroids(rows: np.ndarray, count: int) -> np.ndarray:
    """Return vectors that are far from each other, the first the one closest to the mean, float64 [K, E]."""
    chosen = [int(np.round(rows @ unit(rows.mean(axis=0)), DECIMALS).argmax())]
    closest = np.round(rows @ rows[chosen[0]], DECIMALS)
    while len(chosen) < count and closest.min() < 1:
        chosen.append(int(closest.argmin()))
        closest = np.maximum(closest, np.round(rows @ rows[chosen[-1]], DECIMALS))
    return rows[chosen]
