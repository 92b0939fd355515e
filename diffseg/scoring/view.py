"""The part of a label map that an evaluation protocol scores, and its size.

Axes: H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Crop = Literal["none", "centre"]


@dataclass(frozen=True, kw_only=True)
class View:
    """The crop and the size at which ground truth and prediction are scored.

    Attributes:
        crop: "centre" takes the centre square, whose side is the shorter side of the map.
        size: Length of the shorter side after the crop, in pixels; None keeps its length.
    """

    crop: Crop = "none"
    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size {self.size}: expected at least 1 pixel")

    def apply(self, labels: np.ndarray) -> np.ndarray:
        """Crop and then scale a map [H, W] of any type, by nearest neighbours so that no label is invented."""
        height, width = labels.shape
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
        return f"{crop}, {'own size' if self.size is None else f'{self.size} px (nearest)'}"


def _nearest(length: int, count: int) -> np.ndarray:
    """Return, for each of `count` pixels of the result, the index of the pixel of `length` under its centre."""
    return (2 * np.arange(count) + 1) * length // (2 * count)
