"""One step's loss: a batch of a LabelDataset through the network, by the training's target.

Axes: B images, S pixels of the square, D dimensions or classes, N sampled pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.training.dataset import IGNORE_INDEX
from pipeline.training.losses import affinity_loss, balanced_cross_entropy
from pipeline.training.settings import Target

SAMPLED = 256
"""Pixels of each image whose pairs are compared."""


def objective(
    network: nn.Module, batch: dict[str, Any], target: Target, *, device: str | torch.device, seed: tuple[int, ...]
) -> dict[str, Tensor]:
    """`loss`, with its gradient, and what is told beside it, each [].

    batch: image uint8 [B, 3, S, S], mask int64 [B, S, S]. seed: of the sampled pixels.
    """
    images, labels = batch["image"].to(device), batch["mask"].to(device)
    found = network(images.float().div_(127.5).sub_(1))
    if target == "classes":
        scores = F.interpolate(found, labels.shape[1:], mode="bilinear")
        return {"loss": balanced_cross_entropy(scores, labels, IGNORE_INDEX)}
    size = labels.shape[-1]
    rng = np.random.default_rng(seed)
    places = torch.from_numpy(rng.integers(size, size=(2, len(images), SAMPLED))).to(device)
    affinity = affinity_loss(sampled(found, places, size), _at(labels, places), IGNORE_INDEX)
    return affinity._asdict()


def _at(labels: Tensor, places: Tensor) -> Tensor:
    """[B, N] of labels [B, S, S] at int64 places [2, B, N]: rows and columns."""
    rows, columns = places
    return labels.flatten(1).gather(1, rows * labels.shape[2] + columns)


def sampled(found: Tensor, places: Tensor, size: int) -> Tensor:
    """float32 [B, N, D]: between the vectors [B, D, h, w] of a square of `size` pixels, at the pixels' middles."""
    rows, columns = (2 * places + 1) / size - 1
    grid = torch.stack([columns, rows], dim=-1)[:, None]
    there = F.grid_sample(found, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return there[:, :, 0].transpose(1, 2)
