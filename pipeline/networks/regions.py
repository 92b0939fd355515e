"""Cluster an embedding into regions of similar vectors.

Axes: D embedding dimensions, h and w height and width of the network's output, N cells of a coarser grid, K regions.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

MIN_DISTANCE = 0.5
"""Mean 1 − |cosine| between two clusters from which on they stay separate regions; a first guess, not tuned yet."""

GRID_SIDE = 32
"""Largest side, in cells, of the grid that is clustered; clustering keeps the distances of all pairs of cells in
memory."""

MIN_CELLS = 3
"""Smallest region, in cells; smaller clusters are borders between regions and are dropped."""


def region_scores(embedding: torch.Tensor, min_distance: float = MIN_DISTANCE) -> torch.Tensor:
    """Score how well each position of an embedding fits each of its regions.

    Regions are clusters of the cells of a coarser grid, by average linkage. The axis of a region is the direction with
    the largest sum of squared cosines to its cells.

    Args:
        embedding: float32 [D, h, w].
        min_distance: Mean 1 − |cosine| between two clusters from which on they stay separate regions.

    Returns:
        |cosine| of each position to the axis of each region, float32 [K, h, w], 0 to 1.
    """
    unit = F.normalize(embedding, dim=0)
    cells = F.adaptive_avg_pool2d(unit, (min(GRID_SIDE, unit.shape[1]), min(GRID_SIDE, unit.shape[2]))).flatten(1)
    clusters = _cluster(F.normalize(cells, dim=0), min_distance)
    numbers, sizes = np.unique(clusters, return_counts=True)
    kept = numbers[sizes >= min(MIN_CELLS, sizes.max())]
    axes = torch.stack([_axis(cells[:, torch.from_numpy(clusters == number)]) for number in kept])
    return (axes @ unit.flatten(1)).abs().unflatten(1, unit.shape[1:])


def _cluster(cells: torch.Tensor, min_distance: float) -> np.ndarray:
    """Return the cluster of each of the unit vectors [D, N], int [N]."""
    if cells.shape[1] == 1:
        return np.ones(1, np.int64)
    distances = 1 - (cells.T @ cells).abs().double().numpy()
    np.fill_diagonal(distances, 0)
    return fcluster(linkage(squareform(distances.clip(0), checks=False), "average"), min_distance, "distance")


def _axis(vectors: torch.Tensor) -> torch.Tensor:
    """Return the unit vector [D] with the largest sum of squared cosines to vectors [D, n]; its sign is arbitrary."""
    return torch.linalg.eigh(vectors @ vectors.T).eigenvectors[:, -1]
