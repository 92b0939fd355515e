"""Bilinear interpolation as a product of matrices, which is several times faster than interpolating map by map."""

from __future__ import annotations

import functools

import numpy as np
import torch

from diffseg.devices import to_device

CACHED_MATRICES = 64
"""Matrices kept for later images. One for 64 tokens takes 164 kB for 640 pixels, and 2 MB for 8,000 pixels."""

HOST = torch.device("cpu")


@functools.lru_cache(maxsize=CACHED_MATRICES)
def bilinear_matrix(
    tokens: int, samples: int, *, start: float = 0, stop: float | None = None, device: torch.device = HOST
) -> torch.Tensor:
    """Return the matrix that interpolates an axis of tokens at the centres of equal intervals.

    Beyond the centre of an outer token, the value of that token holds, as with align_corners=False.

    Args:
        tokens: Length of the axis.
        samples: Number of intervals.
        start: Where the first interval begins, in tokens.
        stop: Where the last interval ends, in tokens; by default the end of the axis.
        device: Where the matrix is kept.

    Returns:
        float32 [samples, tokens]. Each row has at most two weights, and sums to 1. Later calls share it, so it must not
        be modified.
    """
    stop = tokens if stop is None else stop
    centres = start + (np.arange(samples) + 0.5) * ((stop - start) / samples) - 0.5
    centres = np.clip(centres, 0, tokens - 1)
    lower = np.minimum(centres.astype(np.int64), max(tokens - 2, 0))
    upper = np.minimum(lower + 1, tokens - 1)
    weights = np.zeros((samples, tokens))
    rows = np.arange(samples)
    weights[rows, lower] = 1 - (centres - lower)
    weights[rows, upper] += centres - lower
    with torch.inference_mode(mode=False):  # a tensor made in inference mode could not be used in training
        return to_device(torch.from_numpy(weights.astype(np.float32)), device)
