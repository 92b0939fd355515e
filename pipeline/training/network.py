"""A compact U-Net: images to a vector a pixel, an embedding or the scores of classes.

Written here since no library's would do: segmentation_models.pytorch imports torchvision, and the networks of
transformers and diffusers cost each worker about ten seconds of imports. Group norms, as batches are small; nothing is
computed at the pixels' own resolution, where most of the time would go.

Axes: B images, D dimensions or classes, S pixels of the square, h and w of the network's grid, S / 2.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 2
LEVELS = 4
GROUPS = 8


class Block(nn.Module):
    """Two convolutions of 3 x 3 around a shortcut."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.first = nn.GroupNorm(GROUPS, outside)
        self.inner = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.second = nn.GroupNorm(GROUPS, outside)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first(self.enter(x)))
        return x + F.silu(self.second(self.inner(x)))


class SegmentationNetwork(nn.Module):
    """float32 [B, 3, S, S] in [−1, 1] to [B, D, S / 2, S / 2].

    width: channels of the finest level, a multiple of 8. dimensions: D.
    """

    def __init__(self, *, width: int, dimensions: int) -> None:
        super().__init__()
        widths = [width * 2 ** min(level, 3) for level in range(LEVELS)]
        self.enter = nn.Conv2d(3 * STRIDE**2, width, 3, padding=1)
        self.down = nn.ModuleList(Block(inside, outside) for inside, outside in pairwise(widths))
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(deep + fine, fine, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, fine), nn.SiLU())
            for fine, deep in pairwise(widths)
        )
        self.leave = nn.Conv2d(width, dimensions, 1)

    def forward(self, images: Tensor) -> Tensor:
        levels = [F.silu(self.enter(F.pixel_unshuffle(images, STRIDE)))]
        for block in self.down:
            levels.append(block(F.avg_pool2d(levels[-1], 2)))
        x = levels.pop()
        for block, fine in zip(reversed(self.up), reversed(levels), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2, mode="bilinear"), fine], dim=1))
        return self.leave(x)
