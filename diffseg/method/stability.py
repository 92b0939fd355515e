"""Choose the most stable of several partitions of the same positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FACTORS = tuple(2 ** (eighth / 4) for eighth in range(-4, 5))
"""Factors that multiply a threshold: from half to double, in equal steps of its logarithm."""


def most_stable(partitions: Sequence[np.ndarray]) -> int:
    """Return the index of the partition that agrees best with all others, by the adjusted Rand index.

    A partition that stays the same over a wide range of thresholds agrees with that whole range. One that changes a
    little at every step may agree with it as well.

    Args:
        partitions: Integers ≥ 0, [P] each.

    Returns:
        The index; the first of several partitions that agree equally well.
    """
    agreement = np.zeros(len(partitions))
    for i, partition in enumerate(partitions):
        for j, earlier in enumerate(partitions[:i]):
            index = adjusted_rand_index(partition, earlier)
            agreement[i] += index
            agreement[j] += index
    return int(agreement.argmax())


def adjusted_rand_index(a: np.ndarray, b: np.ndarray) -> float:
    """Return 1 for the same partition under any numbering, and 0 at chance level (Hubert and Arabie, 1985)."""
    columns = int(b.max()) + 1
    table = np.bincount(a.ravel() * columns + b.ravel(), minlength=(int(a.max()) + 1) * columns)
    table = table.reshape(-1, columns).astype(np.float64)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1)).sum() / 2)

    in_both, in_a, in_b = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    expected, mean = in_a * in_b / max(pairs(table.sum()[None]), 1), (in_a + in_b) / 2
    return 1.0 if mean == expected else (in_both - expected) / (mean - expected)
