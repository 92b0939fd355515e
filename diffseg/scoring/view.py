"""The pixels of a label map that a protocol scores, and at which size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Crop = Literal["none", "centre"]


@dataclass(frozen=True, kw_only=True)
class View:
    """Which pixels of a label map are scored, and at which size; truth and prediction are looked at alike.

    crop: centre takes the centre square, of the shorter side. size: pixels of the shorter side after that; None leaves
    it as it is.
    """

    crop: Crop = "none"
    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"size {self.size}: expected at least 1 pixel")

    def apply(self, labels: np.ndarray) -> np.ndarray:
        """[H, W] of any type, cropped and then scaled; each pixel takes the nearest one, so no label is made up."""
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
    """The index, of `length` pixels, under the centre of each of `count`."""
    return (2 * np.arange(count) + 1) * length // (2 * count)
