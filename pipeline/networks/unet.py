"""A compact U-Net that maps images to a grid of vectors at half their resolution: an embedding, or class scores.

It is defined here because segmentation_models.pytorch imports torchvision, and importing the networks of transformers
or diffusers takes each worker about ten seconds. It uses group norms because batches are small, and works at half the
pixels' resolution, because most of the time would be spent at the full resolution.

Axes: B images, D embedding dimensions or classes, S side of the square input in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 2
LEVELS = 4
GROUPS = 8


class Block(nn.Module):
    """Two 3 x 3 convolutions, the second with a residual connection around it."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.first = nn.GroupNorm(GROUPS, out_channels)
        self.inner = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.second = nn.GroupNorm(GROUPS, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first(self.enter(x)))
        return x + F.silu(self.second(self.inner(x)))


class SegmentationNetwork(nn.Module):
    """Maps float32 [B, 3, S, S] in [−1, 1] to [B, D, S / 2, S / 2].

    Args:
        width: Channels of the finest level, a multiple of 8.
        dimensions: D.
    """

    def __init__(self, *, width: int, dimensions: int) -> None:
        super().__init__()
        widths = [width * 2 ** min(level, 3) for level in range(LEVELS)]
        self.enter = nn.Conv2d(3 * STRIDE**2, width, 3, padding=1)
        self.down = nn.ModuleList(Block(finer, coarser) for finer, coarser in pairwise(widths))
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(deep + fine, fine, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, fine), nn.SiLU())
            for fine, deep in pairwise(widths)
        )
        self.leave = nn.Conv2d(width, dimensions, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the levels of images from the finest, [B, width, S / 2, S / 2], to the coarsest, a sixteenth."""
        levels = [F.silu(self.enter(F.pixel_unshuffle(images, STRIDE)))]
        for block in self.down:
            levels.append(block(F.avg_pool2d(levels[-1], 2)))
        return levels

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the output of the levels of images, [B, D, S / 2, S / 2]."""
        *finer, x = levels
        for block, fine in zip(reversed(self.up), reversed(finer), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2, mode="bilinear"), fine], dim=1))
        return self.leave(x)
