"""Self-attention with a known partition into regions, for measurements and tests without a model.

Axes: H heads, P positions (side² tokens, row by row).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def voronoi(side: int, regions: int, seed: int) -> np.ndarray:
    """Partition a square grid into Voronoi cells.

    Args:
        side: Side of the grid, in tokens.
        regions: Number of cells, at most side². Their centres are random tokens.
        seed: Seed of the centres.

    Returns:
        The cell of each token, int64 [side, side]; every cell contains at least its centre.
    """
    centres = np.random.default_rng(seed).permutation(side * side)[:regions]
    rows, columns = np.mgrid[:side, :side]
    distances = (rows[..., None] - centres // side) ** 2 + (columns[..., None] - centres % side) ** 2
    return distances.argmin(axis=-1)


def planted_heads(
    mask: np.ndarray, sides: Sequence[int], *, leak: float, noise: float, seed: int, heads: int = 2
) -> dict[int, np.ndarray]:
    """Plant the regions of a mask in self-attention of several resolutions.

    A token attends uniformly to its own region, apart from the share `leak`, which spreads over all tokens. A token of
    a coarse grid attends to all regions that it covers, in proportion.

    Args:
        mask: The region of each token of the finest grid, a square integer array [side, side] with values from 0.
        sides: Sides of the grids, each a divisor of the side of the mask.
        leak: Share of the attention that spreads over all tokens, 0 to 1.
        noise: Standard deviation of the logarithm of the attention.
        seed: Seed of the noise.
        heads: Number of heads, which differ in their noise.

    Returns:
        The attention by side of the grid, float32 [H, P, P]; each row sums to 1.
    """
    regions_of_tokens = np.eye(mask.max() + 1, dtype=np.float32)[mask]
    generator = np.random.default_rng(seed)
    maps = {}
    for side in sides:
        cell = len(mask) // side
        share = regions_of_tokens.reshape(side, cell, side, cell, -1).mean(axis=(1, 3)).reshape(side * side, -1)
        attention = (1 - leak) * share @ (share / share.sum(axis=0)).T + leak / side**2
        noisy = attention * np.exp(noise * generator.standard_normal((heads, *attention.shape), dtype=np.float32))
        maps[side] = noisy / noisy.sum(axis=-1, keepdims=True)
    return maps


def planted_attention(regions: int, sides: Sequence[int], *, heads: int = 2) -> dict[int, np.ndarray]:
    """Plant Voronoi cells in self-attention, with the leakage and noise of all measurements.

    Args:
        regions: Number of cells.
        sides: Sides of the grids, each a divisor of the largest.
        heads: Number of heads.

    Returns:
        As `planted_heads`.
    """
    return planted_heads(voronoi(max(sides), regions, seed=0), sides, leak=0.1, noise=0.6, seed=0, heads=heads)
