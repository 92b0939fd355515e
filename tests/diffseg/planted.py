"""Self-attention with a planted partition, which the method must recover.

A row puts 1 − leak of its mass uniformly on its own region and leak uniformly on the rest. Without noise, the distance
between the rows of two regions that leak only into each other is J = (1 − 2·leak)·ln((1 − leak)/leak), whatever their
areas.
"""

from __future__ import annotations

import numpy as np
from references import symmetric_kl_by_elements

from jobs.benchmarks.planted import planted_heads as planted_heads
from jobs.benchmarks.planted import voronoi as voronoi

CRITICAL_LEAK = {0.9: 0.190, 1.0: 0.176, 1.1: 0.163}
"""Merging threshold to the leakage at which two regions have exactly that distance, to three digits."""


def planted(mask: np.ndarray, *, leak: float, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Plant the regions of an integer mask [h, w]: float64 [P, P], rows sum to 1, with noise in the logarithm."""
    regions = mask.ravel()
    same = regions[:, None] == regions[None, :]
    inside, outside = same.sum(axis=1, keepdims=True), (~same).sum(axis=1, keepdims=True)
    attention = np.where(same, (1 - leak) / inside, leak / np.maximum(outside, 1))
    attention *= np.exp(noise * np.random.default_rng(seed).standard_normal(attention.shape))
    return attention / attention.sum(axis=1, keepdims=True)


def two_unequal_regions(side: int = 24) -> np.ndarray:
    """Return int64 [side, side]: region 0 is the left third, and region 1 the rest."""
    mask = np.ones((side, side), dtype=np.int64)
    mask[:, : side // 3] = 0
    return mask


def permuted_columns(attention: np.ndarray, seed: int = 0) -> np.ndarray:
    """Shuffle the values of each row, as a negative control."""
    return np.random.default_rng(seed).permuted(attention, axis=1)


def region_distance(attention: np.ndarray, mask: np.ndarray) -> float:
    """Return the symmetric KL, in nats, between a row of region 0 and a row of region 1."""
    first, second = (attention[np.flatnonzero(mask.ravel() == region)[0]] for region in (0, 1))
    return float(symmetric_kl_by_elements(first[None], second[None])[0, 0])


def adjusted_rand_index(labels: np.ndarray, ground_truth: np.ndarray) -> float:
    """Return 1 for the same partition under any numbering, 0 at chance."""
    table = np.zeros((labels.max() + 1, ground_truth.max() + 1))
    np.add.at(table, (labels.ravel(), ground_truth.ravel()), 1)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, left, right, total = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0)), pairs(table.sum())
    expected = left * right / total
    return (both - expected) / ((left + right) / 2 - expected)


def same_partition(labels: np.ndarray, expected: np.ndarray) -> bool:
    """Return whether two label maps agree on every pixel, under some one-to-one renumbering."""
    pairs = np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1)
    return len(pairs[0]) == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
