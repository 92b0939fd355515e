"""Class activation maps (CAMs), and labels of pixels that are made from them and from the classes of an image.

As in the published code of AFA (Ru et al., CVPR 2022) and ToCo (Ru et al., CVPR 2023), with one difference: maps are
kept at half the resolution of the image.

Axes: B images, C classes without the background, S side of the square images in pixels, s side of the maps, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffseg.method.par import pixel_adaptive
from pipeline.training.recipes.settings import IGNORE_INDEX

SCALES = (1.0, 0.5, 1.5)
"""Sizes at which images are passed through the network, as shares of S."""

STRIDE = 2
"""Pixels of the image along one pixel of a map."""


class Thresholds(NamedTuple):
    """Values of a CAM, 0 to 1, that separate classes from background.

    Attributes:
        high: Above it, a pixel is of the class.
        low: Up to it, a pixel is background. Pixels between the two are uncertain.
    """

    high: float
    low: float


def activation_maps(maps_of: Callable[[Tensor], Sequence[Tensor]], images: Tensor, present: Tensor) -> list[Tensor]:
    """Compute CAMs over several scales of the images and their mirror images.

    Each is the maximum over both orientations, summed over the scales, and scaled to 0 to 1.

    Args:
        maps_of: Scores of classes by position, [2 B, C, h, w] for [2 B, 3, S', S']; it may return several.
        images: float32 [B, 3, S, S].
        present: Which classes each image shows, [B, C], 1 or 0. The maps of other classes are 0.

    Returns:
        For each of the results of `maps_of`, float32 [B, C, S / 2, S / 2].
    """
    side = images.shape[-1] // STRIDE
    sums: list[Tensor] = []
    for scale in SCALES:
        length = round(scale * images.shape[-1])
        scaled = images if scale == 1 else F.interpolate(images, (length, length), mode="bilinear")
        for number, scores in enumerate(maps_of(torch.cat([scaled, scaled.flip(-1)]))):
            straight, mirrored = F.interpolate(scores, (side, side), mode="bilinear").chunk(2)
            activation = torch.maximum(straight, mirrored.flip(-1)).relu()
            if number == len(sums):
                sums.append(activation)
            else:
                sums[number] = sums[number] + activation
    return [normalised(maps) * present[:, :, None, None] for maps in sums]


def normalised(maps: Tensor) -> Tensor:
    """Scale each map of [B, C, s, s] to 0 to 1; a constant map becomes 0."""
    maps = maps - maps.amin(dim=(2, 3), keepdim=True)
    return maps / (maps.amax(dim=(2, 3), keepdim=True) + 1e-5)


def labels_of(cams: Tensor, thresholds: Thresholds) -> Tensor:
    """Return the class of each pixel, int64 [B, s, s]: 0 for the background, and the ignore index where uncertain."""
    values, classes = cams.max(dim=1)
    labels = torch.where(values > thresholds.high, classes + 1, IGNORE_INDEX)
    return torch.where(values <= thresholds.low, 0, labels)


def regions_of(cams: Tensor, thresholds: Thresholds) -> Tensor:
    """Return 0 for background, 1 for uncertain and 2 for object, int64 [B, s, s]."""
    values = cams.amax(dim=1)
    return 1 + (values >= thresholds.high).long() - (values <= thresholds.low).long()


def refined_labels(
    cams: Tensor, present: Tensor, images: Tensor, thresholds: Thresholds, affinity: Tensor | None = None
) -> Tensor:
    """Return the class of each pixel after pixel-adaptive refinement (PAR).

    The scores are refined twice, with the high and with the low threshold as the constant score of the background. A
    pixel has a class if that wins against the high score. Otherwise it is background if that wins with the low score,
    and uncertain if not.

    Args:
        cams: [B, C, s, s].
        present: Which classes each image shows, [B, C].
        images: float32 [B, 3, S, S] in [−1, 1].
        thresholds: The two scores of the background.
        affinity: Weights by which AFA first spreads the scores between tokens, [B, N, N]; see `transitions`.

    Returns:
        int64 [B, S, S]: 0 for the background, and the ignore index where uncertain.
    """
    # Only as many classes as an image shows are refined, whatever the length of the vocabulary.
    count = max(1, int(present.sum(dim=1).max()))
    shown, classes = (each[:, :count] for each in present.sort(dim=1, descending=True, stable=True))
    maps = cams.gather(1, classes[:, :, None, None].expand(-1, -1, *cams.shape[2:]))
    if affinity is not None:
        side = round(affinity.shape[-1] ** 0.5)
        maps = F.interpolate(maps, (side, side), mode="bilinear")
    maps = maps.masked_fill(shown[:, :, None, None] == 0, -math.inf)
    numbers = F.pad(classes + 1, (1, 0))
    of_high, of_low = (
        numbers.gather(1, winners.flatten(1)).view_as(winners)
        for winners in _winners(maps, images, thresholds, affinity)
    )
    return torch.where(of_high > 0, of_high, torch.where(of_low == 0, 0, IGNORE_INDEX))


def _winners(maps: Tensor, images: Tensor, backgrounds: Sequence[float], affinity: Tensor | None) -> list[Tensor]:
    """Return for each score of the background which map wins, int64 [B, S, S]: 0 for the background, 1 + k for map k.

    Args:
        maps: [B, K, s, s]; −∞ for maps that must not win.
        images: [B, 3, S, S].
        backgrounds: Scores of the background.
        affinity: [B, N, N] for maps of N tokens, or None.
    """
    each = [torch.cat([torch.full_like(maps[:, :1], score), maps], dim=1).softmax(dim=1) for score in backgrounds]
    scores = torch.cat(each, dim=1)
    if affinity is not None:
        scores = (scores.flatten(2) @ affinity).view_as(scores)
    small = F.avg_pool2d(images, STRIDE)
    refined = pixel_adaptive(F.interpolate(scores, small.shape[2:], mode="bilinear"), small)
    return [
        part.argmax(dim=1) for part in F.interpolate(refined, images.shape[2:], mode="bilinear").chunk(len(each), 1)
    ]


def at_tokens(labels: Tensor, side: int) -> Tensor:
    """Return int64 [B, side, side], the labels of [B, S, S] at the centres of tokens."""
    return F.interpolate(labels[:, None].float(), (side, side), mode="nearest-exact")[:, 0].long()
