"""Wasserstein distances between attention maps: how far the mass of one map must be moved to become the other.

Each takes float32 [..., m, P] and [..., n, P] and returns float32 [..., m, n], in units of the grid's diagonal. None
measures whether two maps overlap: two small objects that touch are close, and the two ends of a long object are far
apart.

Axes: m and n rows, P = h·w positions.
"""

from __future__ import annotations

import math

import torch

from diffseg.attention.maps import Grid
from diffseg.devices import to_device
from diffseg.method.distance import by_rows

DIRECTIONS, QUANTILES = 16, 32
"""Directions of the sliced distance, and quantiles of each projection."""

EXACT = "donot_use_mm_for_euclid_dist"
"""Mode of `torch.cdist` that avoids the cancellation of the form with a matrix product."""


def marginal_w1(p: torch.Tensor, q: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the mean over both axes of W1 between marginals, Σ |CDF_p − CDF_q|: a lower bound of W1, and a metric."""

    def cumulative(maps: torch.Tensor) -> list[torch.Tensor]:
        return [maps.unflatten(-1, grid).sum(dim=axis).cumsum(dim=-1) for axis in (-1, -2)]

    rows, columns = (torch.cdist(a, b, p=1) for a, b in zip(cumulative(p), cumulative(q), strict=True))
    return (rows + columns) / (2 * math.hypot(*grid))


def sliced_w2(p: torch.Tensor, q: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the root of the mean of W2² between projections on 16 directions, from 32 quantiles each: a metric."""
    angles = torch.arange(DIRECTIONS) * (math.pi / DIRECTIONS)
    along = _positions(grid) @ torch.stack([angles.sin(), angles.cos()])  # [P, DIRECTIONS]
    levels = (torch.arange(QUANTILES) + 0.5) / QUANTILES
    projections = [
        (to_device(order, p.device), to_device(coordinates, p.device))
        for coordinates, order in (projected.sort(stable=True) for projected in along.unbind(dim=1))
    ]
    levels = to_device(levels, p.device)

    def quantiles(maps: torch.Tensor) -> torch.Tensor:
        """Return float32 [..., n, DIRECTIONS · QUANTILES], whose Euclidean distances are those of the slices."""
        slices = []
        for order, coordinates in projections:
            cdf = maps[..., order].cumsum(dim=-1)
            index = torch.searchsorted(cdf, levels.expand(*cdf.shape[:-1], -1).contiguous())
            slices.append(coordinates[index.clamp_max(len(coordinates) - 1)])
        return torch.cat(slices, dim=-1) / math.sqrt(DIRECTIONS * QUANTILES)

    quantiles_p = quantiles(p)
    return by_rows(lambda rows: torch.cdist(quantiles_p, quantiles(rows), compute_mode=EXACT), p, q)


def gaussian_w2(p: torch.Tensor, q: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return W2 between Gaussians with the means μ and covariances Σ of the maps (Bures): a metric between Gaussians.

    It is √(‖μ − μ'‖² + tr Σ + tr Σ' − 2 tr (Σ½ Σ' Σ½)½), where tr M½ = √(tr M + 2 √det M) for a 2 x 2 matrix M. Nothing
    else about the shape of a map has an effect.
    """
    y, x = to_device(_positions(grid), p.device).T
    moments = torch.stack([y, x, y * y, x * x, x * y], dim=1)

    def gaussians(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return means [..., n, 2], covariances [..., n, 4] and square roots of their determinants [..., n, 1]."""
        mean_y, mean_x, yy, xx, xy = (maps @ moments).unbind(dim=-1)
        yy, xx, xy = yy - mean_y * mean_y, xx - mean_x * mean_x, xy - mean_x * mean_y
        root = (yy * xx - xy * xy).clamp_min(0).sqrt()
        return torch.stack([mean_y, mean_x], dim=-1), torch.stack([yy, xx, xy, xy], dim=-1), root[..., None]

    (mean_p, sigma_p, root_p), (mean_q, sigma_q, root_q) = gaussians(p), gaussians(q)
    means_apart = torch.cdist(mean_p, mean_q, compute_mode=EXACT).square()
    traces = [sigma[..., :2].clamp_min(0).sum(dim=-1, keepdim=True) for sigma in (sigma_p, sigma_q)]
    cross_trace = (sigma_p @ sigma_q.mT + 2 * root_p * root_q.mT).clamp_min(0).sqrt()
    return (means_apart + traces[0] + traces[1].mT - 2 * cross_trace).clamp_min(0).sqrt()


def _positions(grid: Grid) -> torch.Tensor:
    """Return row and column of each position from the middle of the grid, float32 [P, 2], in diagonals."""
    rows, columns = grid
    y, x = torch.meshgrid(torch.arange(rows) - (rows - 1) / 2, torch.arange(columns) - (columns - 1) / 2, indexing="ij")
    return torch.stack([y.flatten(), x.flatten()], dim=1) / math.hypot(*grid)
