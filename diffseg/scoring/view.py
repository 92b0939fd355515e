"""The part of a label map that an evaluation protocol scores, and its size.

Axes: H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

Crop = Literal["none", "centre"]

Sampling = Literal["nearest", "picie", "diffcut"]
"""How crop and resize are computed; see `View`."""

DIFFCUT_SIDE = 1024
"""Side to which DiffCut resizes ground truth before it takes its 128 x 128 pixels."""


@dataclass(frozen=True, kw_only=True)
class View:
    """The crop and the size at which ground truth and prediction are scored.

    Attributes:
        crop: "centre" takes the centre square, whose side is the shorter side of the map.
        size: Length of the shorter side after the crop, in pixels; None keeps its length.
        sampling: How pixels are chosen.
            nearest: crop, then take the pixel under the centre of each pixel of the result, as google/diffseg does.
            picie: resize the shorter side with Pillow, then cut out the centre square (PiCIE, STEGO).
            diffcut: the centre square of a side one pixel shorter than the shorter side, resized to 1,024 pixels by
            "nearest-exact" and from there to `size` by "nearest", both as PyTorch defines them.
    """

    crop: Crop = "none"
    size: int | None = None
    sampling: Sampling = "nearest"

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size {self.size}: expected at least 1 pixel")
        if self.sampling != "nearest" and (self.crop != "centre" or self.size is None):
            raise ValueError(f"sampling {self.sampling!r}: expected the centre square and a size")

    def apply(self, labels: np.ndarray) -> np.ndarray:
        """Crop and scale a map [H, W] of any type, by choosing pixels so that no label is invented."""
        height, width = labels.shape
        if self.sampling != "nearest":
            assert self.size is not None
            indices = _picie_indices if self.sampling == "picie" else _diffcut_indices
            shorter = min(height, width)
            return labels[indices(height, shorter, self.size)[:, None], indices(width, shorter, self.size)]
        if self.crop == "centre":
            square = min(height, width)
            top, left = (height - square) // 2, (width - square) // 2
            labels = labels[top : top + square, left : left + square]
        if self.size is None or self.size == min(labels.shape):
            return labels
        rows, columns = (_nearest(length, round(length * self.size / min(labels.shape))) for length in labels.shape)
        return labels[rows[:, None], columns]

    def __str__(self) -> str:
        crop = "centre square" if self.crop == "centre" else "whole images"
        sampling = {"nearest": "nearest", "picie": "resized before the crop", "diffcut": "nearest, of 1,024 px"}
        return f"{crop}, {'own size' if self.size is None else f'{self.size} px ({sampling[self.sampling]})'}"


def _nearest(length: int, count: int) -> np.ndarray:
    """Return, for each of `count` pixels of the result, the index of the pixel of `length` under its centre."""
    return (2 * np.arange(count) + 1) * length // (2 * count)


def _picie_indices(length: int, shorter: int, size: int) -> np.ndarray:
    """Return the indices that PiCIE and STEGO score along a side: torchvision's resize and centre crop of a PIL image.

    Args:
        length: Length of this side.
        shorter: Length of the shorter side, which becomes `size`.
        size: Number of indices.
    """
    count = int(size * length / shorter)
    positions = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    resized = np.asarray(positions.resize((count, 1), Image.Resampling.NEAREST))[0]
    start = round((count - size) / 2)
    return resized[start : start + size]


def _diffcut_indices(length: int, shorter: int, size: int) -> np.ndarray:
    """Return the indices that DiffCut scores along a side; the arguments are those of `_picie_indices`."""
    crop = max(1, shorter - 1)
    start = round((length - crop) / 2)
    of_1024 = np.floor(np.arange(size, dtype=np.float32) * np.float32(DIFFCUT_SIDE / size)).astype(int)
    within = ((of_1024 + 0.5) * np.float32(crop / DIFFCUT_SIDE)).astype(np.float32).astype(int)
    return start + np.minimum(within, crop - 1)
