"""MaskCLIP+: any network, with the vectors of the names as its classifier (Zhou, Loy and Dai, ECCV 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffseg.clip.text_model import load_text_model
from pipeline.networks.build import create_network
from pipeline.networks.text_classes import TextClasses, TextClassifier
from pipeline.networks.text_networks import about_text
from pipeline.training.recipes.base import Recipe
from pipeline.training.recipes.objective import objective
from pipeline.training.recipes.settings import RecipeSettings


class MaskClipRecipe(Recipe):
    """Balanced cross-entropy of the cosines with the classes, divided by the temperature.

    Self-training is a further round: `diffseg label --network` labels the images, and its labels train the next
    network.
    """

    def __init__(self, settings: RecipeSettings, class_names: Sequence[str]) -> None:
        super().__init__(settings)
        assert settings.text_model is not None
        text = load_text_model(settings.text_model)
        classes = TextClasses(text, class_names[1:])
        inner, about = create_network(
            settings.network, dimensions=classes.dimensions, width=settings.width, backbone=settings.backbone
        )
        self.network = TextClassifier(inner, classes)
        self.describe(about | about_text(settings.text_model, text), classes.dimensions, class_names)

    def losses(
        self, network: nn.Module, batch: dict[str, Any], *, step: int, seed: tuple[int, ...], device: str | torch.device
    ) -> dict[str, Tensor]:
        """Compute the loss of a step."""
        return objective(network, batch, "classes", device=device, seed=seed)
