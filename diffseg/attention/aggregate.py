"""Self-attention of several resolutions into one row-stochastic map (DiffSeg section 3.2, equations 2 and 3).

Axes: P = h·w positions of the finest resolution, the working grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from diffseg.attention.bilinear import bilinear_matrix
from diffseg.attention.maps import CrossAttention, Grid, SelfAttention
from diffseg.component_settings import Weights
from diffseg.devices import to_device


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


def aggregate(
    attention: SelfAttention, weights: Weights = "paper", *, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, Grid]:
    """Maps of a batch into float32 [B, P, P] whose rows sum to 1, and the working grid (h, w).

    Keys are upsampled bilinearly and made distributions again; queries are repeated (nearest). out: where to write; it
    may be the finest map itself, which saves its memory a second time.
    """
    shares = {grid: share for grid, share in resolution_weights(attention.layers, weights).items() if share}
    working = attention.finest
    height, width = working
    for rows, columns in shares:
        if height % rows or width % columns:
            raise ValueError(f"attention of {rows} x {columns} tokens does not divide the {height} x {width} grid")
    finest = attention.maps[working]
    total = torch.empty_like(finest) if out is None else out
    # A band holds whole rows of tokens of every resolution; on a CPU it stays in the cache for all of its sums.
    bands = math.gcd(*(rows for rows, _ in shares)) if finest.device.type == "cpu" else 1
    for band in range(bands):
        target = total[:, _rows_of(band, bands, working)]
        if working in shares:
            fine = finest[:, _rows_of(band, bands, working)]
            torch.mul(fine, shares[working] / fine.sum(dim=-1, keepdim=True), out=target)
        else:
            target.zero_()
        for grid in shares.keys() - {working}:
            rows, columns = grid
            keys = upsample(attention.maps[grid][:, _rows_of(band, bands, grid)], grid, working)
            keys *= shares[grid] / keys.sum(dim=-1, keepdim=True)
            repeated = target.unflatten(1, (rows // bands, height // rows, columns, width // columns))
            repeated += keys.unflatten(1, (rows // bands, 1, columns, 1))
    return total, working


def _rows_of(band: int, bands: int, grid: Grid) -> slice:
    positions = grid[0] // bands * grid[1]
    return slice(band * positions, (band + 1) * positions)


def upsample(maps: torch.Tensor, grid: Grid, working: Grid) -> torch.Tensor:
    """[..., h·w] of one grid to [..., H·W] of the working one."""
    down, along = (
        to_device(bilinear_matrix(tokens, samples), maps.device) for tokens, samples in zip(grid, working, strict=True)
    )
    return (down @ (maps.unflatten(-1, grid) @ along.T)).flatten(-2)


def average(cross: CrossAttention, *, coarsest: bool) -> tuple[torch.Tensor, Grid]:
    """float32 [B, T, h, w] on the finest grid, and that grid.

    coarsest: whether the lowest of several resolutions counts, and all resolutions alike, as in the code of DiffSeg;
    else it is left out, since what it looks at lies nowhere, and all layers of the others count alike.
    """
    finest = cross.finest
    lowest = min(cross.maps, key=lambda grid: grid[0] * grid[1])
    used = [grid for grid in cross.maps if coarsest or grid != lowest or len(cross.maps) == 1]
    weights = {grid: 1 if coarsest else cross.layers[grid] for grid in used}
    total = sum(weights.values())
    maps = [
        F.interpolate(cross.maps[grid].unflatten(-1, grid), finest, mode="bilinear", align_corners=False)
        * (weights[grid] / total)
        for grid in used
    ]
    return torch.stack(maps).sum(dim=0), finest
