"""One vector for each segment and one for the image, pooled from the output of a layer (ReCo; Shin et al., 2022).

References for names are learned from these vectors over many images (`diffseg.references`). The layer is that of
`diffseg.attention.layer_output`. Positions are normalised before they are averaged, so that none dominates and half
precision suffices.

Axes: D channels of the layer, E = `FEATURE_SIZE` numbers of a vector, h and w positions of the layer's grid, H and W
pixels of the labelled region, K segments.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from diffseg.attention.layer_output import LayerOutput
from diffseg.segmentation import IGNORE, Box, Features

FEATURE_SIZE = 256
"""Numbers of a vector, 2 bytes each."""

SEED = 0
"""Seed of the projection. Another one would make all stored vectors useless."""


@cache
def projection(channels: int) -> torch.Tensor:
    """Return the fixed projection to `FEATURE_SIZE` numbers, float32 [E, D].

    Its entries are random signs over √E, which keeps cosines up to about 1 / √E (Achlioptas, 2003). They come from the
    bits of PCG64, which are the same in every version of numpy. A layer of at most E channels is kept as it is, with
    zeros behind its channels.
    """
    if channels <= FEATURE_SIZE:
        return torch.eye(FEATURE_SIZE, channels)
    words = np.random.PCG64(SEED).random_raw(FEATURE_SIZE * channels)
    signs = (words >> np.uint64(63)).astype(np.float32) * 2 - 1
    return torch.from_numpy(signs.reshape(FEATURE_SIZE, channels) / np.float32(FEATURE_SIZE**0.5))


def project(output: LayerOutput) -> torch.Tensor:
    """Normalise the output of a layer at each position and project it, float32 [B, E, h, w]; NaN becomes 0."""
    maps = torch.nan_to_num(output.maps.float(), nan=0.0, posinf=0.0, neginf=0.0)
    unit = torch.nn.functional.normalize(maps, dim=1)
    return (projection(maps.shape[1]).to(maps.device) @ unit).unflatten(-1, output.grid)


def pool(maps: np.ndarray, labels: np.ndarray, content: Box) -> Features:
    """Average the vectors of positions over the pixels of each segment and over all labelled pixels.

    Args:
        maps: float32 [E, h, w], see `project`.
        labels: uint16 [H, W] of the labelled region: 0 … K−1, and `IGNORE`.
        content: The part of the grid that the region fills, in positions.
    """
    size, rows, columns = maps.shape
    height, width = labels.shape
    row_of_pixel = _positions(content.top, content.bottom, height, rows)
    column_of_pixel = _positions(content.left, content.right, width, columns)
    known = labels != IGNORE
    count = 1 + int(labels[known].max(initial=0))
    sums, areas = np.zeros((count, size)), np.zeros(count)
    for row in np.unique(row_of_pixel):  # the pixels of one row of the grid at a time, to bound memory
        of_row = row_of_pixel == row
        places = labels[of_row].astype(np.int64) * columns + column_of_pixel
        pixels = np.bincount(places[known[of_row]], minlength=count * columns).reshape(count, columns)
        sums += pixels @ maps[:, row].T.astype(np.float64)
        areas += pixels.sum(axis=1)
    return Features(
        image=(sums.sum(axis=0) / max(1.0, areas.sum())).astype(np.float16),
        segments=(sums / np.maximum(1, areas)[:, None]).astype(np.float16),
    )


def _positions(start: float, stop: float, pixels: int, positions: int) -> np.ndarray:
    """Return the position on a grid that the centre of each pixel falls on, int64 [pixels]."""
    centres = start + (np.arange(pixels) + 0.5) * (stop - start) / pixels
    return np.clip(np.floor(centres).astype(np.int64), 0, positions - 1)


def labelled_region(labels: np.ndarray, region: Box) -> np.ndarray:
    """Return the part of a label map [H, W] of the whole image that was labelled, as a view."""
    return labels[int(region.top) : int(region.bottom), int(region.left) : int(region.right)]
