"""The loss of one training step, for either training target.

Axes: B images, S side of the square images in pixels, D embedding dimensions or classes, N sampled pixels, h and w
height and width of the network's output, S / 2 each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.training.recipes.losses import affinity_loss, balanced_cross_entropy
from pipeline.training.recipes.settings import IGNORE_INDEX, Target
from pipeline.training.recipes.workers import own_part, place

SAMPLED = 256
"""Pixels sampled from each image; the affinity loss compares all their pairs."""


def objective(
    network: nn.Module, batch: dict[str, Any], target: Target, *, device: str | torch.device, seed: tuple[int, ...]
) -> dict[str, Tensor]:
    """Compute the loss of a batch.

    Args:
        network: Maps float32 [B, 3, S, S] in [−1, 1] to [B, D, h, w].
        batch: `image`, uint8 [B, 3, S, S], and `mask`, int64 [B, S, S].
        target: What the network learns.
        device: Device of the network.
        seed: Seed of the sampled pixels; its last number is the rank of the worker.

    Returns:
        `loss`, which carries the gradient, and for target `segments` its parts `same` and `other`; each [].
    """
    images, labels = batch["image"].to(device), batch["mask"].to(device)
    output = network(images.float().div_(127.5).sub_(1))
    if target == "classes":
        scores = F.interpolate(output, labels.shape[1:], mode="bilinear")
        return {"loss": balanced_cross_entropy(scores, labels, IGNORE_INDEX)}
    size = labels.shape[-1]
    # All workers draw for the images of the whole batch, and each takes its part.
    rng = np.random.default_rng((*seed[:-1], 0))
    drawn = rng.integers(size, size=(2, place()[1] * len(images), SAMPLED))
    positions = torch.from_numpy(own_part(drawn, axis=1)).to(device)
    affinity = affinity_loss(sample_vectors(output, positions, size), _labels_at(labels, positions), IGNORE_INDEX)
    return affinity._asdict()


def _labels_at(labels: Tensor, positions: Tensor) -> Tensor:
    """Return [B, N] labels of [B, S, S] at int64 positions [2, B, N], rows and columns."""
    rows, columns = positions
    return labels.flatten(1).gather(1, rows * labels.shape[2] + columns)


def sample_vectors(vectors: Tensor, positions: Tensor, size: int) -> Tensor:
    """Sample a coarse grid of vectors bilinearly at the centres of pixels.

    Args:
        vectors: float32 [B, D, h, w], which cover a square of `size` x `size` pixels.
        positions: int64 [2, B, N], rows and columns of pixels.
        size: Side of the square in pixels.

    Returns:
        float32 [B, N, D].
    """
    rows, columns = (2 * positions + 1) / size - 1
    grid = torch.stack([columns, rows], dim=-1)[:, None]
    samples = F.grid_sample(vectors, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return samples[:, :, 0].transpose(1, 2)
