"""What a network is trained to: pixels of a segment alike and others not, or the class of each pixel.

Axes: B images, S sampled pixels, D dimensions of an embedding, C classes, H and W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Affinity(NamedTuple):
    """loss: [], 0 to 1. same, other: mean |cosine| of the pairs within a segment, and across segments, [], 0 to 1."""

    loss: torch.Tensor
    same: torch.Tensor
    other: torch.Tensor


def affinity_loss(features: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> Affinity:
    """Pairwise affinity of sampled pixels: ToCo's patch token contrast (Ru and others, CVPR 2023, section 3.2).

    ½ (1 − Σ |cos| / (n + 1)) over the n pairs within a segment, and ½ Σ |cos| / (n + 1) over the pairs across segments;
    of each image, then the mean. The relation is that of the label map in place of ToCo's auxiliary CAM.

    features: [B, S, D]. labels: integer [B, S]; a pair with an ignored pixel counts for nothing, nor does a pixel with
    itself. Finite whatever pairs there are.
    """
    unit = F.normalize(features, dim=-1)
    alike = (unit @ unit.transpose(1, 2)).abs()
    known = labels != ignore_index
    pairs = known[:, :, None] & known[:, None, :] & ~torch.eye(labels.shape[1], dtype=torch.bool, device=labels.device)
    within = pairs & (labels[:, :, None] == labels[:, None, :])
    same, other = (
        (alike * chosen).sum(dim=(1, 2)) / (chosen.sum(dim=(1, 2)) + 1) for chosen in (within, pairs & ~within)
    )
    return Affinity(loss=(0.5 * (1 - same) + 0.5 * other).mean(), same=same.mean(), other=other.mean())


def balanced_cross_entropy(logits: torch.Tensor, classes: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Cross-entropy, half of it over background pixels and half over the others; all of it where one side is missing.

    logits: [B, C, H, W]. classes: int64 [B, H, W], 0 is background. 0 where every pixel is ignored. [], ≥ 0.
    """
    each = F.cross_entropy(logits, classes, ignore_index=ignore_index, reduction="none")
    sides = [classes == 0, (classes != 0) & (classes != ignore_index)]
    means = torch.stack([(each * side).sum() / side.sum().clamp_min(1) for side in sides])
    there = torch.stack([side.any() for side in sides])
    return means.sum() / there.sum().clamp_min(1)
