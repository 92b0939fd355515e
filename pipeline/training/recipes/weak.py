"""What the recipes afa and toco share: their samples, optimiser and schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.networks.vit import ViTSegmenter
from pipeline.training.recipes.base import Recipe
from pipeline.training.recipes.settings import RecipeSettings
from pipeline.training.recipes.workers import place

HEADS_FACTOR = 10.0
"""Learning rate of everything above the transformer, as a multiple of that of the transformer."""

WARM_UP = 0.075
"""Share of the steps during which the learning rate rises: 1,500 of the 20,000 of both papers."""

PIXELS_FROM = 0.1
"""Share of the steps after which labels of pixels are learned from: 2,000 of 20,000."""


class Sample(NamedTuple):
    """A batch on the device.

    Attributes:
        images: float32 [B, 3, S, S] in [−1, 1].
        present: Which classes each image shows, without the background, float32 [B, C], 1 or 0.
        mask: Label maps, int64 [B, S, S], with the ignore index.
    """

    images: Tensor
    present: Tensor
    mask: Tensor

    @classmethod
    def of(cls, batch: dict[str, Any], device: str | torch.device) -> Sample:
        """Return a batch of the dataset on a device."""
        images, present, mask = (batch[name].to(device) for name in ("image", "present", "mask"))
        return cls(images.float().div_(127.5).sub_(1), present.float(), mask)


class WeakRecipe(Recipe):
    """A recipe for the network `vit` with a classifier of images.

    Attributes:
        power: The learning rate falls as (1 − progress) to this power.
        with_heads: Makes `network` from the network that will label and the number of classes without the background.
        segmenter: The network that will label, a part of `network`.
    """

    power: ClassVar[float]
    with_heads: ClassVar[type[nn.Module]]
    segmenter: ViTSegmenter

    def __init__(self, settings: RecipeSettings, class_names: Sequence[str]) -> None:
        super().__init__(settings)
        if len(class_names) < 2:
            raise ValueError(f"recipe {settings.recipe}: the run names no class but the background")
        segmenter = self.create_network(class_names)
        assert isinstance(segmenter, ViTSegmenter)
        self.segmenter = segmenter
        self.network = self.with_heads(segmenter, len(class_names) - 1)

    def optimiser(self) -> torch.optim.Optimizer:
        """Return AdamW with a higher learning rate for everything above the transformer."""
        encoder = list(self.segmenter.encoder.parameters())
        known = set(encoder)
        groups: list[dict[str, Any]] = [
            {"params": encoder},
            {"params": [weight for weight in self.network.parameters() if weight not in known], "factor": HEADS_FACTOR},
        ]
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), weight_decay=0.01, fused=True)

    def trained(self) -> nn.Module:
        """Return the network that labels, without the heads."""
        return self.segmenter

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate as a share of its maximum: it rises, then falls to 0 by a power."""
        return progress / WARM_UP if progress < WARM_UP else (1 - progress) ** self.power

    def progress(self, step: int) -> float:
        """Return the share of the steps that are done."""
        return step / self.settings.steps


def random_numbers(seed: tuple[int, ...], images: int) -> list[np.random.Generator]:
    """Return generators for this worker's images; their numbers do not depend on the number of workers.

    Args:
        seed: Seed of the step; its last number is the rank of the worker.
        images: Number of images of this worker.
    """
    first = place()[0] * images
    return [np.random.default_rng((*seed[:-1], first + number)) for number in range(images)]
