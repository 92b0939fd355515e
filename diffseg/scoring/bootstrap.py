"""Bootstrap confidence intervals over images for statistics that follow from sums over images.

Axes: N images, F features of an image, S statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A statistic over images with its 95 % bootstrap interval.

    Attributes:
        mean: The statistic over all images.
        half_width: Half the width of the interval.
        count: Number of images.
    """

    mean: float
    half_width: float
    count: int


def bootstrap(
    features: np.ndarray | sparse.csr_array,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    seed: int = 0,
    rounds: int = 2000,
) -> list[Interval]:
    """Compute statistics and their percentile bootstrap intervals by resampling images.

    Args:
        features: float64 [N, F], one row per image; dense or sparse.
        statistic: Maps the sums of features over images, float64 [F], to statistics [S]. Resamples for which it is NaN
            are left out of the interval.
        seed: Seed of the resampling.
        rounds: Number of resamples.
    """
    count = features.shape[0]
    rng = np.random.default_rng(seed)
    resampled = np.array(
        [
            statistic(np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64) @ features)
            for _ in range(rounds)
        ]
    )
    low, high = np.nanquantile(resampled, [0.025, 0.975], axis=0)
    means = statistic(np.ones(count) @ features)
    return [
        Interval(mean=float(mean), half_width=float(width) / 2, count=count)
        for mean, width in zip(means, high - low, strict=True)
    ]
