"""Wasserstein distances between attention maps: how far the mass of one lies from that of the other.

All in units of the grid's diagonal, float32 [..., m, P] and [..., n, P] to float32 [..., m, n]. None says whether two
maps overlap: two small things that touch are near, two ends of a long one are far.

Axes: m and n rows, P = h·w positions.
"""

from __future__ import annotations

import math

import torch

from diffseg.attention.maps import Grid
from diffseg.devices import to_device
from diffseg.method.distance import by_rows

DIRECTIONS, QUANTILES = 16, 32


def marginal_w1(p: torch.Tensor, q: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Mean over both axes of W1 between the marginals, Σ |CDF_p − CDF_q|: a lower bound of W1, and a metric."""

    def cumulated(maps: torch.Tensor) -> list[torch.Tensor]:
        return [maps.unflatten(-1, grid).sum(dim=axis).cumsum(dim=-1) for axis in (-1, -2)]

    rows, columns = (torch.cdist(a, b, p=1) for a, b in zip(cumulated(p), cumulated(q), strict=True))
    return (rows + columns) / (2 * math.hypot(*grid))


def sliced_w2(p: torch.Tensor, q: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Root of the mean of W2² between the projections on 16 directions, by 32 quantiles each: a metric."""
    angles = torch.arange(DIRECTIONS) * (math.pi / DIRECTIONS)
    along = _positions(grid) @ torch.stack([angles.sin(), angles.cos()])  # [P, DIRECTIONS]
    levels = (torch.arange(QUANTILES) + 0.5) / QUANTILES
    projections = [
        (to_device(order, p.device), to_device(places, p.device))
        for places, order in (projected.sort(stable=True) for projected in along.unbind(dim=1))
    ]
    levels = to_device(levels, p.device)

    def quantiles(maps: torch.Tensor) -> torch.Tensor:
        """float32 [..., n, DIRECTIONS · QUANTILES]: Euclidean distances between these are the slices'."""
        found = []
        for order, places in projections:
            cdf = maps[..., order].cumsum(dim=-1)
            at = torch.searchsorted(cdf, levels.expand(*cdf.shape[:-1], -1).contiguous())
            found.append(places[at.clamp_max(len(places) - 1)])
        return torch.cat(found, dim=-1) / math.sqrt(DIRECTIONS * QUANTILES)

    own = quantiles(p)
    exact = "donot_use_mm_for_euclid_dist"
    return by_rows(lambda rows: torch.cdist(own, quantiles(rows), compute_mode=exact), p, q)


def gaussian_w2(p: torch.Tensor, q: torch.Tensor, grid: Grid) -> torch.Tensor:
    """W2 between Gaussians of the maps' means μ and covariances Σ (Bures), a metric between those.

    √(‖μ − μ'‖² + tr Σ + tr Σ' − 2 tr (Σ½ Σ' Σ½)½); of a 2 x 2 matrix M, tr M½ = √(tr M + 2 √det M). Blind to whatever
    else a map's shape is.
    """
    y, x = to_device(_positions(grid), p.device).T
    moments = torch.stack([y, x, y * y, x * x, x * y], dim=1)

    def gaussians(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Means [..., n, 2], covariances [..., n, 4] and roots of their determinants [..., n, 1]."""
        mean_y, mean_x, yy, xx, xy = (maps @ moments).unbind(dim=-1)
        yy, xx, xy = yy - mean_y * mean_y, xx - mean_x * mean_x, xy - mean_x * mean_y
        root = (yy * xx - xy * xy).clamp_min(0).sqrt()
        return torch.stack([mean_y, mean_x], dim=-1), torch.stack([yy, xx, xy, xy], dim=-1), root[..., None]

    (mean_p, sigma_p, root_p), (mean_q, sigma_q, root_q) = gaussians(p), gaussians(q)
    apart = torch.cdist(mean_p, mean_q, compute_mode="donot_use_mm_for_euclid_dist").square()
    traces = [sigma[..., :2].clamp_min(0).sum(dim=-1, keepdim=True) for sigma in (sigma_p, sigma_q)]
    both = (sigma_p @ sigma_q.mT + 2 * root_p * root_q.mT).clamp_min(0).sqrt()
    return (apart + traces[0] + traces[1].mT - 2 * both).clamp_min(0).sqrt()


def _positions(grid: Grid) -> torch.Tensor:
    """float32 [P, 2]: row and column of each position from the middle of the grid, in diagonals."""
    rows, columns = grid
    y, x = torch.meshgrid(torch.arange(rows) - (rows - 1) / 2, torch.arange(columns) - (columns - 1) / 2, indexing="ij")
    return torch.stack([y.flatten(), x.flatten()], dim=1) / math.hypot(*grid)
