"""Training losses: affinity of pixels and of tokens, balanced cross-entropy over classes, contrast of class tokens.

Axes: B images, S sampled pixels, D dimensions of an embedding, C classes, H and W pixels, N tokens, V views.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from pipeline.training.recipes.workers import place, total

TEMPERATURE = 0.5
"""Temperature of the class token contrast."""

FLOOR = math.log(1e-4)
"""Logarithm of what the class token contrast adds to the sum over negatives."""


class AffinityLoss(NamedTuple):
    """The affinity loss of a batch and its parts, each [], 0 to 1.

    Attributes:
        loss: The loss.
        same: Mean |cosine| over pairs of pixels within one segment.
        other: Mean |cosine| over pairs of pixels from different segments.
    """

    loss: torch.Tensor
    same: torch.Tensor
    other: torch.Tensor


def affinity_loss(features: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> AffinityLoss:
    """Compute the pairwise affinity loss of sampled pixels: the patch token contrast of ToCo.

    Ru and others, CVPR 2023, section 3.2. For each image, the loss is ½ (1 − Σ |cos| / (n + 1)) over the n pairs within
    a segment plus ½ Σ |cos| / (n + 1) over the n pairs across segments; the result is the mean over images. The label
    map says which pixels belong together, in place of ToCo's auxiliary CAM.

    Args:
        features: Embeddings of the sampled pixels, [B, S, D].
        labels: Their segment ids, integer [B, S].
        ignore_index: Label of pixels that are left out of all pairs. A pixel forms no pair with itself.

    Returns:
        The loss and its parts; finite even if an image has no pairs of one kind.
    """
    unit = F.normalize(features, dim=-1)
    similarity = (unit @ unit.transpose(1, 2)).abs()
    known = labels != ignore_index
    pairs = known[:, :, None] & known[:, None, :] & ~torch.eye(labels.shape[1], dtype=torch.bool, device=labels.device)
    within = pairs & (labels[:, :, None] == labels[:, None, :])
    same, other = (
        (similarity * chosen).sum(dim=(1, 2)) / (chosen.sum(dim=(1, 2)) + 1) for chosen in (within, pairs & ~within)
    )
    return AffinityLoss(loss=(0.5 * (1 - same) + 0.5 * other).mean(), same=same.mean(), other=other.mean())


def balanced_cross_entropy(logits: torch.Tensor, classes: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Compute the mean of the cross-entropy over background pixels and that over all other pixels.

    Several workers divide by the pixels of all of them, so the mean of their losses is the loss of the whole batch.

    Args:
        logits: [B, C, H, W].
        classes: int64 [B, H, W]; 0 is the background.
        ignore_index: Class of pixels that are left out.

    Returns:
        The loss, [], at least 0. If only one side has pixels, the loss of that side; 0 if all pixels are ignored.
    """
    losses = F.cross_entropy(logits, classes, ignore_index=ignore_index, reduction="none")
    sides = [classes == 0, (classes != 0) & (classes != ignore_index)]
    pixels = total(torch.stack([side.sum() for side in sides]))
    sums = torch.stack([(losses * side).sum() for side in sides])
    means = sums * place()[1] / pixels.clamp_min(1)
    return means.sum() / (pixels > 0).sum().clamp_min(1)


def token_affinity_loss(
    affinity: torch.Tensor, labels: torch.Tensor, near: torch.Tensor, ignore_index: int
) -> torch.Tensor:
    """Compute the affinity loss of AFA (Ru and others, CVPR 2022, section 3.3).

    For each image, ½ Σ (1 − W) / (n + 1) over the n pairs of tokens of one class plus ½ Σ W / (n + 1) over the n pairs
    of different classes; the result is the mean over images.

    Args:
        affinity: W, [B, N, N], 0 to 1.
        labels: Classes of tokens, integer [B, N].
        near: Pairs that are compared, bool [N, N].
        ignore_index: Class of tokens that are left out of all pairs.

    Returns:
        The loss, [], 0 to 1.
    """
    known = labels != ignore_index
    pairs = near & known[:, :, None] & known[:, None, :]
    same = pairs & (labels[:, :, None] == labels[:, None, :])
    means = [
        (values * chosen).sum(dim=(1, 2)) / (chosen.sum(dim=(1, 2)) + 1)
        for values, chosen in ((1 - affinity, same), (affinity, pairs & ~same))
    ]
    return (0.5 * (means[0] + means[1])).mean()


def class_token_contrast(student: torch.Tensor, teacher: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Compute the class token contrast of ToCo (Ru and others, CVPR 2023, section 3.3).

    With x = (teacher · student) / 0.5 of a view, and n = ln(1e-4 + Σ e^x) over the negative views, the loss of an image
    is Σ ln(1 + e^(n − x)) over the positive views plus ln(1 + e^n), summed over the teacher's views and divided by
    twice the number of positive views. The published code computes e^x, which overflows; this does not.

    Args:
        student: Projections of all views, [B, V, D].
        teacher: Projections of the global views, [B, 2, D].
        positive: Which of the views may show an object, bool [B, V].

    Returns:
        The loss, [], the mean over images; finite without positive or negative views.
    """
    x = teacher @ student.transpose(1, 2) / TEMPERATURE
    of_negatives = x.masked_fill(positive[:, None], -math.inf)
    n = torch.cat([of_negatives, torch.full_like(x[..., :1], FLOOR)], dim=-1).logsumexp(dim=-1)
    terms = F.softplus(n[..., None] - x) * positive[:, None]
    losses = (terms.sum(dim=-1) + F.softplus(n)).sum(dim=-1)
    return (losses / (2 * positive.sum(dim=1).clamp_min(1))).mean()
