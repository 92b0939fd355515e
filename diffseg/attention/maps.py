"""Attention maps of a batch, by resolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

Grid = tuple[int, int]
"""Height and width in tokens."""


@dataclass(frozen=True, kw_only=True)
class SelfAttention:
    """Self-attention of a batch, by resolution.

    maps: {(h, w): float32 [B, h·w, h·w]}, rows sum to 1; the mean over the heads and layers of that resolution.
    layers: {(h, w): how many layers that mean is of}.
    """

    maps: Mapping[Grid, torch.Tensor]
    layers: Mapping[Grid, int]

    @property
    def finest(self) -> Grid:
        """The grid with the most tokens, on which the method works."""
        return max(self.maps, key=lambda grid: grid[0] * grid[1])

    def of_images(self, start: int, stop: int) -> SelfAttention:
        """The maps of some images of the batch, which stay where they are."""
        return SelfAttention(maps={grid: maps[start:stop] for grid, maps in self.maps.items()}, layers=self.layers)

    def average_with_mirrored(self, mirrored: SelfAttention) -> None:
        """Make these maps, in place, the mean with those of the images mirrored left to right, turned back."""
        for (rows, columns), maps in self.maps.items():
            turned = mirrored.maps[rows, columns].view(-1, rows, columns, rows, columns).flip(2, 4)
            maps.add_(turned.view_as(maps)).div_(2)


@dataclass(frozen=True, kw_only=True)
class CrossAttention:
    """Cross-attention of a batch, by resolution.

    maps: {(h, w): float32 [B, C, h·w]}, the probability of each chosen token at each position, 0 to 1; the mean over
    the heads and layers of that resolution. layers: {(h, w): how many layers that mean is of}.
    """

    maps: Mapping[Grid, torch.Tensor]
    layers: Mapping[Grid, int]

    @property
    def finest(self) -> Grid:
        """The grid with the most positions."""
        return max(self.maps, key=lambda grid: grid[0] * grid[1])

    def of_images(self, start: int, stop: int) -> CrossAttention:
        """The maps of some images of the batch, which stay where they are."""
        return CrossAttention(maps={grid: maps[start:stop] for grid, maps in self.maps.items()}, layers=self.layers)

    def of_words(self, words: torch.Tensor) -> CrossAttention:
        """Maps of T words in the place of tokens. words: float32 [B, T, C], what each token counts for each word."""
        return CrossAttention(maps={grid: words @ maps for grid, maps in self.maps.items()}, layers=self.layers)

    def plus(self, other: CrossAttention) -> CrossAttention:
        """The sums of both maps: of other words of the same images, each 0 in one of the two."""
        maps = {grid: own + other.maps[grid] for grid, own in self.maps.items()}
        return CrossAttention(maps=maps, layers=self.layers)

    def average_with_mirrored(self, mirrored: CrossAttention) -> None:
        """Make these maps, in place, the mean with those of the images mirrored left to right, turned back."""
        for grid, maps in self.maps.items():
            maps.add_(mirrored.maps[grid].unflatten(-1, grid).flip(-1).flatten(-2)).div_(2)
