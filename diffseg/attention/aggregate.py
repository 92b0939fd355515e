"""Aggregate self-attention of several resolutions into one row-stochastic map (DiffSeg section 3.2, equations 2 and 3).

Axes: B images in the batch, P = h·w positions of the finest resolution, which is the working grid, T names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from diffseg.attention.bilinear import bilinear_matrix
from diffseg.attention.maps import CrossAttention, Grid, SelfAttention
from diffseg.component_settings import Weights


def resolution_weights(layers: Mapping[Grid, int], weights: Weights) -> dict[Grid, float]:
    """Return the share of each resolution in the aggregated attention; the shares sum to 1.

    Args:
        layers: Number of layers of each resolution.
        weights: `paper` weights every layer's map in proportion to its side, so SD 1.x has .563/.282/.141/.014 at
            64²/32²/16²/8². `google`, the released code, has one mean map per resolution and weights it in proportion
            to its side: .533/.267/.133/.067. `uniform` weights all resolutions equally. A mapping gives the weight of
            each longer side in tokens, 0 where a side is absent.

    Raises:
        ValueError: The weights are unknown or negative, or are 0 for all resolutions of the model.
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
    """Aggregate the maps of a batch on the finest grid.

    Keys are upsampled bilinearly and normalised again; queries are repeated (nearest neighbour).

    Args:
        attention: Self-attention of the batch.
        weights: See `resolution_weights`.
        out: Memory for the result. It may be the finest map itself, which saves the memory of a second one.

    Returns:
        float32 [B, P, P], whose rows sum to 1, and the working grid (h, w).

    Raises:
        ValueError: A grid does not divide the finest one, or the weights leave nothing.
    """
    shares = {grid: share for grid, share in resolution_weights(attention.layers, weights).items() if share}
    working = attention.finest
    height, width = working
    for rows, columns in shares:
        if height % rows or width % columns:
            raise ValueError(f"attention of {rows} x {columns} tokens does not divide the {height} x {width} grid")
    finest = attention.maps[working]
    total = torch.empty_like(finest) if out is None else out
    # A band holds whole rows of tokens of every resolution. On a CPU it stays in the cache for all of its sums.
    bands = math.gcd(*(rows for rows, _ in shares)) if finest.device.type == "cpu" else 1
    for band in range(bands):
        target = total[:, _band_slice(band, bands, working)]
        if working in shares:
            fine = finest[:, _band_slice(band, bands, working)]
            torch.mul(fine, shares[working] / fine.sum(dim=-1, keepdim=True), out=target)
        else:
            target.zero_()
        for grid in shares.keys() - {working}:
            rows, columns = grid
            keys = upsample(attention.maps[grid][:, _band_slice(band, bands, grid)], grid, working)
            keys *= shares[grid] / keys.sum(dim=-1, keepdim=True)
            repeated = target.unflatten(1, (rows // bands, height // rows, columns, width // columns))
            repeated += keys.unflatten(1, (rows // bands, 1, columns, 1))
    return total, working


def _band_slice(band: int, bands: int, grid: Grid) -> slice:
    """Return the positions of a grid that lie in one of `bands` bands of equal height."""
    positions = grid[0] // bands * grid[1]
    return slice(band * positions, (band + 1) * positions)


def upsample(maps: torch.Tensor, grid: Grid, working: Grid) -> torch.Tensor:
    """Resize maps [..., h·w] of a grid to [..., H·W] of the working grid by bilinear interpolation."""
    down, along = (
        bilinear_matrix(tokens, samples, device=maps.device) for tokens, samples in zip(grid, working, strict=True)
    )
    return (down @ (maps.unflatten(-1, grid) @ along.T)).flatten(-2)


def average_cross_attention(cross: CrossAttention, *, include_coarsest: bool) -> tuple[torch.Tensor, Grid]:
    """Average the cross-attention of all resolutions on the finest grid.

    Args:
        cross: Cross-attention of names.
        include_coarsest: Average all resolutions with equal weights, as DiffSeg's code does. Otherwise the coarsest of
            several resolutions is left out, because its maps are hardly localised, and all layers of the others have
            equal weights.

    Returns:
        float32 [B, T, h, w], and the finest grid (h, w).
    """
    finest = cross.finest
    coarsest = min(cross.maps, key=lambda grid: grid[0] * grid[1])
    used = [grid for grid in cross.maps if include_coarsest or grid != coarsest or len(cross.maps) == 1]
    weights = {grid: 1 if include_coarsest else cross.layers[grid] for grid in used}
    total = sum(weights.values())
    maps = [
        F.interpolate(cross.maps[grid].unflatten(-1, grid), finest, mode="bilinear", align_corners=False)
        * (weights[grid] / total)
        for grid in used
    ]
    return torch.stack(maps).sum(dim=0), finest
