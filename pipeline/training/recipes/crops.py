"""Local crops of ToCo's class token contrast, from uncertain and background regions, and the colours of a view.

All views of an image are cut from the same sample, which the dataset has mirrored or not, so that crops lie where the
region map says. (The published code mirrors the local and the global view independently.)

Axes: B images, V crops of an image, S side of the square images in pixels, s side of the region map.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CROPS = 8
"""Local crops of an image."""

SHARE = 96 / 448
"""Side of a crop as a share of S."""

NEGATIVE_MEAN = 0.2
"""Mean of the region map in a crop up to which the crop is a negative: nearly all of it is background."""

JITTER = 0.4
"""Largest relative change of brightness, contrast and saturation."""


class Crops(NamedTuple):
    """The crops of a batch.

    Attributes:
        corners: Row and column of the upper left corner of each crop in pixels of the image, int64 [B, V, 2].
        positive: Which crops may show an object, bool [B, V].
        side: Side of a crop in pixels.
    """

    corners: Tensor
    positive: Tensor
    side: int

    def cut(self, images: Tensor) -> Tensor:
        """Return the crops of images [B, 3, S, S] as [B V, 3, side, side], all crops of an image in sequence."""
        parts = [
            image[:, top : top + self.side, left : left + self.side]
            for image, corners in zip(images, self.corners.tolist(), strict=True)
            for top, left in corners
        ]
        return torch.stack(parts)


def crop_side(size: int, patch: int) -> int:
    """Return the side of crops of images of `size` pixels: a multiple of the patches' side, at least two of them."""
    return max(2, round(SHARE * size / patch)) * patch


def draw_crops(regions: Tensor, size: int, side: int, rngs: list[np.random.Generator]) -> Crops:
    """Draw crops whose centres show no object, or crops anywhere if an image has too few such places.

    Args:
        regions: 0 background, 1 uncertain, 2 object, int64 [B, s, s].
        size: S, a multiple of s.
        side: Side of the crops in pixels.
        rngs: A random number generator for each image.
    """
    stride = size // regions.shape[-1]
    cells = max(1, side // stride)
    means = F.avg_pool2d(regions[:, None].float(), cells, stride=1)[:, 0]
    # The map's value at the centre of a crop, for the crop's upper left corner.
    margin = cells // 2
    centres = regions[:, margin:, margin:][:, : means.shape[1], : means.shape[2]].cpu().numpy()
    drawn = []
    for places, rng in zip(centres.reshape(len(centres), -1), rngs, strict=True):
        candidates = np.flatnonzero(places <= 1)
        if len(candidates) < CROPS:
            candidates = np.arange(places.size)
        drawn.append(rng.choice(candidates, CROPS, replace=len(candidates) < CROPS))
    chosen = torch.from_numpy(np.stack(drawn)).to(means.device)
    corners = torch.stack([chosen // means.shape[2], chosen % means.shape[2]], dim=-1) * stride
    return Crops(corners, means.flatten(1).gather(1, chosen) > NEGATIVE_MEAN, side)


def recoloured(images: Tensor, rngs: list[np.random.Generator]) -> Tensor:
    """Return images with other brightness, contrast and saturation, float32 [B, 3, S, S] in [−1, 1]."""
    drawn = np.stack([rng.uniform(1 - JITTER, 1 + JITTER, 3) for rng in rngs]).astype(np.float32)
    brightness, contrast, saturation = torch.from_numpy(drawn).to(images.device).T[..., None, None, None]
    bright = ((images + 1) * brightness - 1).clamp(-1, 1)
    mean = bright.mean(dim=(1, 2, 3), keepdim=True)
    contrasted = (mean + (bright - mean) * contrast).clamp(-1, 1)
    grey = contrasted.mean(dim=1, keepdim=True)
    return (grey + (contrasted - grey) * saturation).clamp(-1, 1)
