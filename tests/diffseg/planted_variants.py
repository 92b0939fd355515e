"""Variants of an image with planted regions: in each variant all positions of a region change by the same colour.

A position of region r has in variant v the colour texture + gain · (ratio · colour of (v, r) + noise). Texture and gain
belong to the position and stay the same over the variants.
"""

from __future__ import annotations

import numpy as np
import torch

from diffseg.variants.record import ResponseSum


def planted_variants(
    mask: np.ndarray, variants: int, ratio: float, *, seed: int = 0, texture: float = 1.0, gains: float = 4.0
) -> torch.Tensor:
    """Return the colours, float64 [V, P, 3].

    Args:
        mask: The regions, int [h, w].
        variants: V.
        ratio: Standard deviation of the colours of regions, as a multiple of that of the noise.
        seed: Seed of everything random.
        texture: Standard deviation of the texture.
        gains: Ratio of the largest gain to the smallest; 1 for a gain of 1 everywhere.
    """
    generator, regions = np.random.default_rng(seed), mask.ravel()
    colours = ratio * generator.standard_normal((variants, regions.max() + 1, 3))
    noise = generator.standard_normal((variants, regions.size, 3))
    gain = gains ** (generator.random((regions.size, 1)) - 0.5)
    fixed = texture * generator.standard_normal((regions.size, 3))
    return torch.from_numpy(fixed + gain * (colours[:, regions] + noise))


def units_of(colours: torch.Tensor) -> torch.Tensor:
    """Return the unit vectors of the positions, float32 [P, E], as `diffseg.variants.record` sums them up."""
    sums = ResponseSum(colours[0][None].float(), len(colours))
    for variant in colours:
        sums.add(variant[None].float())
    return sums.units()[0]


def correlations(colours: torch.Tensor) -> np.ndarray:
    """Return the correlation of each pair of positions by its definition, float64 [P, P]."""
    vectors = colours.numpy().transpose(1, 0, 2)
    vectors = (vectors - vectors.mean(axis=1, keepdims=True)).reshape(len(vectors), -1)
    covariance = vectors @ vectors.T
    deviations = np.sqrt(np.diag(covariance))
    return covariance / np.outer(deviations, deviations)
