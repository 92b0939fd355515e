"""One vector for each segment and one for the image, pooled from what the self-attention layers of the UNet read.

References of names are learned from these vectors over many images (`diffseg.references`). They join the inputs of the
last self-attention layer of each of the three finest resolutions: the coarsest ones know objects and the finest one
knows materials. Each position of a resolution has length 1 before they are averaged, so that no position and no
resolution dominates, and half precision suffices.

Axes: B images of the batch, D channels of all resolutions, E = `FEATURE_SIZE` numbers of a vector, h and w positions of
the finest grid, H and W pixels of the labelled region, K segments.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

from diffseg.affinity.features import Features as Inputs
from diffseg.affinity.state import layers_by_grid, parse_grid
from diffseg.attention.maps import Grid
from diffseg.segmentation import IGNORE, Box, Features

FEATURE_SIZE = 256
"""Numbers of a vector, 2 bytes each."""

RESOLUTIONS = 3
"""Number of resolutions that are joined. On captioned scenes, names were right more often with two or three than with
one or with all (docs/references.md)."""

SEED = 0
"""Seed of the projection. Another one would make all stored vectors useless."""


@cache
def projection(channels: int) -> torch.Tensor:
    """Return the fixed projection to `FEATURE_SIZE` numbers, float32 [E, D].

    Its entries are random signs over √E, which keeps cosines up to about 1 / √E (Achlioptas, 2003). They come from the
    bits of PCG64, which are the same in every version of numpy. At most E channels are kept as they are, with zeros
    behind them.
    """
    if channels <= FEATURE_SIZE:
        return torch.eye(FEATURE_SIZE, channels)
    words = np.random.PCG64(SEED).random_raw(FEATURE_SIZE * channels)
    signs = (words >> np.uint64(63)).astype(np.float32) * 2 - 1
    return torch.from_numpy(signs.reshape(FEATURE_SIZE, channels) / np.float32(FEATURE_SIZE**0.5))


def project(inputs: Inputs) -> torch.Tensor:
    """Join and project the features of a pass.

    Args:
        inputs: float [B, D, h·w] by grid, see `diffseg.affinity.features.FeatureReader`; NaN and infinity count as 0.

    Returns:
        float16 [B, E, h, w]: the sum over the resolutions of their projected unit vectors. Coarse positions are
        repeated, so that a mean over positions is that at their own resolution.
    """
    grids = _finest(inputs)
    channels = sum(inputs[grid].shape[1] for grid in grids)
    images, device = len(inputs[grids[0]]), inputs[grids[0]].device
    total, start = torch.zeros(images, FEATURE_SIZE, *grids[0], device=device), 0
    for grid in grids:
        maps = torch.nan_to_num(inputs[grid].float(), nan=0.0, posinf=0.0, neginf=0.0)
        units, stop = F.normalize(maps, dim=1), start + maps.shape[1]
        if channels > FEATURE_SIZE:
            units = projection(channels)[:, start:stop].to(device) @ units
        upsampled = units.unflatten(-1, grid)
        if grid != grids[0]:
            upsampled = F.interpolate(upsampled, grids[0], mode="nearest-exact")
        # Without a projection, the resolutions have channels of their own.
        total[:, slice(None) if channels > FEATURE_SIZE else slice(start, stop)] += upsampled
        start = stop
    return total.half()


def feature_layers(unet: UNet2DConditionModel, resolution: int) -> list[str]:
    """Return the names of the layers whose inputs are joined, the finest first.

    Args:
        unet: The model.
        resolution: Side of the model's square in pixels.
    """
    names = {parse_grid(name): layers[-1] for name, layers in layers_by_grid(unet, resolution).items()}
    return [names[grid] for grid in _finest(names)]


def _finest(grids: Iterable[Grid]) -> list[Grid]:
    """Return the finest `RESOLUTIONS` grids, the finest first."""
    return sorted(grids, key=lambda grid: grid[0] * grid[1], reverse=True)[:RESOLUTIONS]


def pool(maps: np.ndarray, labels: np.ndarray, content: Box) -> Features:
    """Average the vectors of positions over the pixels of each segment and over all labelled pixels.

    Args:
        maps: float [E, h, w], see `project`.
        labels: uint16 [H, W] of the labelled region: 0 … K−1, and `IGNORE`.
        content: The part of the grid that the region fills, in positions.
    """
    size, rows, columns = maps.shape
    height, width = labels.shape
    row_of_pixel = _positions(content.top, content.bottom, height, rows)
    column_of_pixel = _positions(content.left, content.right, width, columns)
    known = labels != IGNORE
    everywhere = bool(known.all())
    count = 1 + int(labels.max() if everywhere else labels[known].max(initial=0))
    pixels = np.zeros((count, rows, columns), np.float32)
    starts = np.searchsorted(row_of_pixel, np.arange(rows + 1))
    for row, (start, stop) in enumerate(itertools.pairwise(starts)):  # a row of the grid at a time, to bound memory
        places = labels[start:stop].astype(np.int64) * columns + column_of_pixel
        of_known = places.ravel() if everywhere else places[known[start:stop]]
        pixels[:, row] = np.bincount(of_known, minlength=count * columns).reshape(count, columns)
    areas = pixels.sum(axis=(1, 2), dtype=np.float64)
    vectors = torch.from_numpy(maps.reshape(size, -1)).float().numpy()  # numpy converts half precision slowly
    sums = pixels.reshape(count, -1) @ vectors.T
    return Features(
        image=(sums.sum(axis=0, dtype=np.float64) / max(1.0, areas.sum())).astype(np.float16),
        segments=(sums / np.maximum(1, areas)[:, None]).astype(np.float16),
    )


def _positions(start: float, stop: float, pixels: int, positions: int) -> np.ndarray:
    """Return the position on a grid that the centre of each pixel falls on, int64 [pixels]."""
    centres = start + (np.arange(pixels) + 0.5) * (stop - start) / pixels
    return np.clip(np.floor(centres).astype(np.int64), 0, positions - 1)


def labelled_region(labels: np.ndarray, region: Box) -> np.ndarray:
    """Return the part of a label map [H, W] of the whole image that was labelled, as a view."""
    return labels[int(region.top) : int(region.bottom), int(region.left) : int(region.right)]
