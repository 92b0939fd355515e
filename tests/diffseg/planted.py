"""Self-attention with a known partition: what the method must find is what was put in.

A row puts 1 − leak of its mass uniformly on its own region and leak uniformly on the rest. Without noise the rows of
two regions that leak only into one another are J = (1 − 2·leak)·ln((1 − leak)/leak) apart, whatever their areas.
"""

from __future__ import annotations

import numpy as np
from references import symmetric_kl_by_elements

from jobs.benchmarks.planted import planted_heads as planted_heads
from jobs.benchmarks.planted import voronoi as voronoi

CRITICAL_LEAK = {0.9: 0.190, 1.0: 0.176, 1.1: 0.163}
"""Threshold of merging to the leakage at which two regions are just that far apart, to three digits."""


def planted(mask: np.ndarray, *, leak: float, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """float64 [P, P] with rows that sum to 1, for an integer mask [h, w] of regions; noise is that of the logarithm."""
    regions = mask.ravel()
    same = regions[:, None] == regions[None, :]
    inside, outside = same.sum(axis=1, keepdims=True), (~same).sum(axis=1, keepdims=True)
    attention = np.where(same, (1 - leak) / inside, leak / np.maximum(outside, 1))
    attention *= np.exp(noise * np.random.default_rng(seed).standard_normal(attention.shape))
    return attention / attention.sum(axis=1, keepdims=True)


def two_unequal_regions(side: int = 24) -> np.ndarray:
    """int64 [side, side]: a left part of a third, and the rest."""
    mask = np.ones((side, side), dtype=np.int64)
    mask[:, : side // 3] = 0
    return mask


def permuted_columns(attention: np.ndarray, seed: int = 0) -> np.ndarray:
    """The negative control: every row keeps its values and loses where they were."""
    return np.random.default_rng(seed).permuted(attention, axis=1)


def region_distance(attention: np.ndarray, mask: np.ndarray) -> float:
    """Symmetric KL in nats between the rows of the first two regions."""
    first, second = (attention[np.flatnonzero(mask.ravel() == region)[0]] for region in (0, 1))
    return float(symmetric_kl_by_elements(first[None], second[None])[0, 0])


def adjusted_rand_index(found: np.ndarray, truth: np.ndarray) -> float:
    """1 for the same partition under any numbering, 0 at chance."""
    table = np.zeros((found.max() + 1, truth.max() + 1))
    np.add.at(table, (found.ravel(), truth.ravel()), 1)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, left, right, total = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0)), pairs(table.sum())
    expected = left * right / total
    return (both - expected) / ((left + right) / 2 - expected)


def same_partition(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether two label maps agree on every pixel, under some one-to-one renumbering."""
    pairs = np.unique(np.stack([found.ravel(), wanted.ravel()]), axis=1)
    return len(pairs[0]) == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))
