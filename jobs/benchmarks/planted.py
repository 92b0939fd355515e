"""Self-attention with a known partition: something to merge where no model is at hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def planted_attention(
    regions: int, sides: Sequence[int], *, leak: float = 0.1, noise: float = 0.6, heads: int = 2, seed: int = 0
) -> dict[int, np.ndarray]:
    """{side: float32 [heads, side², side²]}, rows sum to 1, for the Voronoi cells of random centres.

    Each token of the finest side looks at its own region evenly but for a share `leak`, which goes everywhere; coarse
    tokens look at all regions that they cover. noise: standard deviation of the logarithm.
    """
    generator = np.random.default_rng(seed)
    finest = max(sides)
    centres = generator.random((regions, 2))
    rows, columns = np.mgrid[:finest, :finest] / finest
    distances = (rows[..., None] - centres[:, 0]) ** 2 + (columns[..., None] - centres[:, 1]) ** 2
    own = np.eye(regions, dtype=np.float32)[distances.argmin(axis=-1)]
    maps = {}
    for side in sides:
        cell = finest // side
        share = own.reshape(side, cell, side, cell, regions).mean(axis=(1, 3)).reshape(side * side, regions)
        base = (1 - leak) * share @ (share / np.maximum(share.sum(axis=0), 1e-9)).T + leak / side**2
        noisy = base * np.exp(noise * generator.standard_normal((heads, *base.shape), dtype=np.float32))
        maps[side] = noisy / noisy.sum(axis=-1, keepdims=True)
    return maps
