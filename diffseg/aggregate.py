"""Self-attention of several resolutions into one row-stochastic map (DiffSeg section 3.2, equations 2 and 3).

Axes: P = h·w positions of the finest resolution, the working grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from diffseg.attention import Grid, SelfAttention
from diffseg.settings import Weights


def resolution_weights(layers: Mapping[Grid, int], weights: Weights) -> dict[Grid, float]:
    """The share of each resolution, summing to 1.

    paper: every layer's map in proportion to its side, so .563/.282/.141/.014 for SD 1.x at 64²/32²/16²/8².
    google: one mean map a resolution in proportion to its side, .533/.267/.133/.067 (the released code).
    uniform: every resolution alike. Or a mapping of the longer side in tokens to a weight, 0 where absent.
    """
    if weights == "paper":
        raw = {grid: float(max(grid) * count) for grid, count in layers.items()}
    elif weights == "google":
        raw = {grid: float(max(grid)) for grid in layers}
    elif weights == "uniform":
        raw = dict.fromkeys(layers, 1.0)
    elif isinstance(weights, Mapping):
        raw = {grid: float(weights.get(max(grid), 0.0)) for grid in layers}
    else:
        raise ValueError(f"weights={weights!r}: expected paper, google, uniform or a mapping of sides to weights")
    total = sum(raw.values())
    if total <= 0 or min(raw.values()) < 0:
        raise ValueError(f"weights={weights!r} leave nothing of the resolutions {sorted(layers)}")
    return {grid: value / total for grid, value in raw.items()}


def aggregate(attention: SelfAttention, weights: Weights = "paper") -> tuple[torch.Tensor, Grid]:
    """One image's maps into float32 [P, P] with rows that sum to 1, and the working grid (h, w).

    Keys are upsampled bilinearly and made distributions again; queries are repeated (nearest).
    """
    shares = resolution_weights(attention.layers, weights)
    working = max(shares, key=lambda grid: grid[0] * grid[1])
    height, width = working
    first = attention.maps[working]
    total = torch.zeros(height * width, height * width, dtype=torch.float32, device=first.device)
    for grid, maps in attention.maps.items():
        if shares[grid] == 0:
            continue
        rows, columns = grid
        if height % rows or width % columns:
            raise ValueError(f"attention of {rows} x {columns} tokens does not divide the {height} x {width} grid")
        keys = maps
        if grid != working:
            keys = F.interpolate(
                maps.view(-1, 1, rows, columns), working, mode="bilinear", align_corners=False
            ).flatten(1)
        keys = keys * (shares[grid] / keys.sum(dim=1, keepdim=True))
        repeated = total.view(rows, height // rows, columns, width // columns, height * width)
        repeated += keys.view(rows, 1, columns, 1, height * width)
    return total, working
