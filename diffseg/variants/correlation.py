"""How well a label map agrees with variants of its image: a score of quality without ground truth.

Over variants that keep the layout of an image, positions of one segment should correlate, and positions of different
segments should not (`diffseg.variants.record`).

Axes: P positions, E values of a unit vector, K segments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffseg.segmentation import IGNORE


class Correlations(NamedTuple):
    """Correlations of a label map, −1 to 1. A large gap between the two is meant as a sign of a good label map.

    Attributes:
        within: Mean over the segments, weighted by area, of the mean correlation of two of their positions; None if no
            segment has two positions.
        between: Mean over the segments, weighted by area, of the mean correlation of one of their positions and one of
            another segment; None if there is only one segment.
    """

    within: float | None
    between: float | None


def correlations_of(labels: np.ndarray, units: np.ndarray) -> Correlations:
    """Return the correlations of any label map, with sums in float64.

    Args:
        labels: int [P], the segment of each position, `IGNORE` for none.
        units: float32 [P, E], unit vectors; positions whose vector is 0 are left out.
    """
    known = (labels != IGNORE) & units.any(axis=1)
    order = np.argsort(labels[known], kind="stable")
    _, starts, sizes = np.unique(labels[known][order], return_index=True, return_counts=True)
    if not len(starts):
        return Correlations(None, None)
    vectors = units[known][order].astype(np.float64)
    sums = np.add.reduceat(vectors, starts)  # [K, E]; no BLAS, whose threads may change the order of a sum
    squares, products = (sums * sums).sum(axis=1), (sums * sums.sum(axis=0)).sum(axis=1)
    self_pairs = np.add.reduceat((vectors * vectors).sum(axis=1), starts)
    total, several = sizes.sum(), sizes > 1
    within = between = None
    if several.any():
        pairs = sizes[several] * (sizes[several] - 1)
        within = float(np.average((squares - self_pairs)[several] / pairs, weights=sizes[several]))
    if len(sizes) > 1:
        between = float(np.average((products - squares) / (sizes * (total - sizes)), weights=sizes))
    return Correlations(within, between)
