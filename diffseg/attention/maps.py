"""Attention maps of a batch, by resolution.

Axes: B images in the batch, h and w tokens of a grid, C chosen tokens of the prompt, T names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

Grid = tuple[int, int]
"""Height and width in tokens."""

Maps = TypeVar("Maps", bound="AttentionMaps")


@dataclass(frozen=True, kw_only=True)
class AttentionMaps:
    """Attention maps of a batch, by resolution.

    Attributes:
        maps: {(h, w): float32 [B, …]}, the mean over the heads and layers of each resolution.
        layers: {(h, w): number of layers that the mean is over}.
    """

    maps: Mapping[Grid, torch.Tensor]
    layers: Mapping[Grid, int]

    @property
    def finest(self) -> Grid:
        """The grid with the most tokens."""
        return max(self.maps, key=lambda grid: grid[0] * grid[1])

    def of_images(self: Maps, start: int, stop: int) -> Maps:
        """Return the maps of the images from `start` up to `stop` of the batch, as views."""
        return replace(self, maps={grid: maps[start:stop] for grid, maps in self.maps.items()})


@dataclass(frozen=True, kw_only=True)
class SelfAttention(AttentionMaps):
    """Self-attention of a batch: float32 [B, h·w, h·w] per resolution, whose rows sum to 1.

    The finest grid is the working grid of the method.
    """

    def average_with_mirrored(self, mirrored: SelfAttention) -> None:
        """Average these maps in place with the maps of the mirrored images, after mirroring those back."""
        for (rows, columns), maps in self.maps.items():
            restored = mirrored.maps[rows, columns].view(-1, rows, columns, rows, columns).flip(2, 4)
            maps.add_(restored.view_as(maps)).div_(2)


@dataclass(frozen=True, kw_only=True)
class CrossAttention(AttentionMaps):
    """Cross-attention of a batch: float32 [B, C, h·w] per resolution.

    A value is the probability, 0 to 1, with which a position attends to a chosen token of the prompt.
    """

    def choose_tokens(self, columns: torch.Tensor) -> CrossAttention:
        """Return the maps of the tokens at int64 [B, C]."""
        return replace(
            self,
            maps={g: maps.gather(1, columns[..., None].expand(-1, -1, maps.shape[2])) for g, maps in self.maps.items()},
        )

    def combine_tokens(self, weights: torch.Tensor) -> CrossAttention:
        """Combine the maps of tokens into maps of names.

        Args:
            weights: float32 [B, T, C], the weight of each token in each name.

        Returns:
            Maps [B, T, h·w] per resolution.
        """
        return replace(self, maps={grid: weights @ maps for grid, maps in self.maps.items()})

    def add(self, other: CrossAttention) -> CrossAttention:
        """Return the sum with maps of other names of the same images; a name must be 0 in one of the two."""
        return replace(self, maps={grid: maps + other.maps[grid] for grid, maps in self.maps.items()})

    def average_with_mirrored(self, mirrored: CrossAttention) -> None:
        """Average these maps in place with the maps of the mirrored images, after mirroring those back."""
        for grid, maps in self.maps.items():
            maps.add_(mirrored.maps[grid].unflatten(-1, grid).flip(-1).flatten(-2)).div_(2)
