"""Which of several partitions of the same positions is the most stable."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FACTORS = tuple(2 ** (eighth / 4) for eighth in range(-4, 5))
"""What a threshold is multiplied by: from half to double, in equal steps of its logarithm."""


def most_stable(partitions: Sequence[np.ndarray]) -> int:
    """The index of the partition that agrees best with all the others, by the adjusted Rand index; of equals the first.

    partitions: integers ≥ 0, [P] each. One that stays as it is over a wide range of thresholds agrees with all of that
    range, and so may one that changes a little at every step.
    """
    agreement = np.zeros(len(partitions))
    for i, one in enumerate(partitions):
        for j, other in enumerate(partitions[:i]):
            index = adjusted_rand_index(one, other)
            agreement[i] += index
            agreement[j] += index
    return int(agreement.argmax())


def adjusted_rand_index(one: np.ndarray, other: np.ndarray) -> float:
    """1 for the same partition under any numbering, 0 at chance (Hubert and Arabie, 1985)."""
    columns = int(other.max()) + 1
    table = np.bincount(one.ravel() * columns + other.ravel(), minlength=(int(one.max()) + 1) * columns)
    table = table.reshape(-1, columns).astype(np.float64)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1)).sum() / 2)

    both, left, right = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    expected, mean = left * right / max(pairs(table.sum()[None]), 1), (left + right) / 2
    return 1.0 if mean == expected else (both - expected) / (mean - expected)
