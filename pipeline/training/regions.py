"""Embeddings into regions: what is alike belongs together.

Axes: D dimensions, h and w of the network's grid, N cells of a coarser one, K regions.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

APART = 0.5
"""Mean 1 − |cosine| between two groups from which on they are two regions; a first guess, not tuned yet."""

CELLS = 32
"""Of a side of the grid on which regions are found: the distances of all pairs of cells are held."""

LEAST_CELLS = 3
"""Smaller groups are borders between regions, and no regions."""


def region_scores(embedding: torch.Tensor, apart: float = APART) -> torch.Tensor:
    """Scores float32 [K, h, w], 0 to 1, of an embedding float32 [D, h, w]: |cosine| to the axis of each region.

    Average linkage over the cells of a coarser grid; a region's axis is the direction that its cells share most of.
    """
    unit = F.normalize(embedding, dim=0)
    cells = F.adaptive_avg_pool2d(unit, (min(CELLS, unit.shape[1]), min(CELLS, unit.shape[2]))).flatten(1)
    groups = _groups(F.normalize(cells, dim=0), apart)
    numbers, sizes = np.unique(groups, return_counts=True)
    kept = numbers[sizes >= min(LEAST_CELLS, sizes.max())]
    axes = torch.stack([_axis(cells[:, torch.from_numpy(groups == number)]) for number in kept])
    return (axes @ unit.flatten(1)).abs().unflatten(1, unit.shape[1:])


def _groups(cells: torch.Tensor, apart: float) -> np.ndarray:
    """int [N]: the group of each of the unit vectors [D, N]."""
    if cells.shape[1] == 1:
        return np.ones(1, np.int64)
    distances = 1 - (cells.T @ cells).abs().double().numpy()
    np.fill_diagonal(distances, 0)
    return fcluster(linkage(squareform(distances.clip(0), checks=False), "average"), apart, "distance")


def _axis(vectors: torch.Tensor) -> torch.Tensor:
    """The unit vector [D] with the largest sum of squared cosines to vectors [D, n]; its sign has no meaning."""
    return torch.linalg.eigh(vectors @ vectors.T).eigenvectors[:, -1]
