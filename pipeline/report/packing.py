"""Maps of regions in the form in which the page gets them.

Axes: H and W pixels.
"""

from __future__ import annotations

import base64
import zlib

import numpy as np

SIDE = 256
"""Longer side of a picture of the gallery, in pixels."""


def packed(regions: np.ndarray) -> str:
    """Return a map, uint8 [H, W], compressed by zlib, as base64."""
    return base64.b64encode(zlib.compress(regions.tobytes(), 4)).decode()


def reduced(regions: np.ndarray, side: int) -> np.ndarray:
    """Reduce a map to sides of at most `side` pixels, by taking the nearest pixel."""
    rows, columns = regions.shape
    height, width = reduced_size(rows, columns, side)
    y = ((np.arange(height) + 0.5) * rows / height).astype(int)
    x = ((np.arange(width) + 0.5) * columns / width).astype(int)
    return np.ascontiguousarray(regions[y][:, x])


def reduced_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return the height and width of an image of this size, reduced to sides of at most `side` pixels."""
    scale = min(1.0, side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
