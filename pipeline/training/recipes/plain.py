"""Training on the pixels of the label maps alone, for any network and either target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training.recipes.base import Recipe
from pipeline.training.recipes.objective import objective
from pipeline.training.recipes.settings import RecipeSettings


class Plain(Recipe):
    """Affinity of pixels for the target `segments`, and balanced cross-entropy for `classes`."""

    def __init__(self, settings: RecipeSettings, class_names: Sequence[str]) -> None:
        super().__init__(settings)
        self.network = self.create_network(class_names)

    def losses(
        self, network: nn.Module, batch: dict[str, Any], *, step: int, seed: tuple[int, ...], device: str | torch.device
    ) -> dict[str, Tensor]:
        """Compute the loss of the network's output at sampled pixels or at all of them."""
        return objective(network, batch, self.settings.target, device=device, seed=seed)
