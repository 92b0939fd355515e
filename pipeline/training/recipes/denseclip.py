"""DenseCLIP: a decoder that reads how well each position fits the texts (Rao et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffseg.clip.text_model import load_text_model
from diffseg.optim import optimiser_of
from pipeline.networks.denseclip import DenseClip
from pipeline.networks.text_networks import about_text
from pipeline.training.recipes.base import Recipe
from pipeline.training.recipes.losses import balanced_cross_entropy
from pipeline.training.recipes.settings import IGNORE_INDEX, RecipeSettings

SCORE_MAP_WEIGHT = 0.4
"""Weight of the loss of the score map, which DenseCLIP's code calls the identity head."""

CLIP_FACTOR = 0.1
"""Learning rate of the CLIP's image encoder as a multiple of that of everything else."""


class DenseClipRecipe(Recipe):
    """Balanced cross-entropy of the scores, and that of the score map divided by its temperature."""

    network: DenseClip

    def __init__(self, settings: RecipeSettings, class_names: Sequence[str]) -> None:
        super().__init__(settings)
        assert settings.text_model is not None
        text = load_text_model(settings.text_model)
        self.network = DenseClip(text, class_names[1:], width=settings.width)
        about = {"network": "denseclip", "width": settings.width, **about_text(settings.text_model, text)}
        self.describe(about, self.network.classes.dimensions, class_names)

    def losses(
        self, network: nn.Module, batch: dict[str, Any], *, step: int, seed: tuple[int, ...], device: str | torch.device
    ) -> dict[str, Tensor]:
        """Compute the loss of a step, and its parts `scores` and `score_map`."""
        images, labels = batch["image"].to(device), batch["mask"].to(device)
        maps = network(images.float().div_(127.5).sub_(1), with_score_map=True)
        scores, score_map = (
            balanced_cross_entropy(F.interpolate(each, labels.shape[1:], mode="bilinear"), labels, IGNORE_INDEX)
            for each in maps
        )
        return {"loss": scores + SCORE_MAP_WEIGHT * score_map, "scores": scores, "score_map": score_map}

    def optimiser(self) -> torch.optim.Optimizer:
        """Return the optimiser of all weights, with a lower learning rate for the CLIP's image encoder."""
        images = [] if self.network.clip is None else list(self.network.clip.parameters())
        slow = {id(weight) for weight in images}
        others = [weight for weight in self.network.parameters() if id(weight) not in slow]
        groups: list[dict[str, Any]] = [{"params": others, "factor": 1.0}]
        if images:
            groups.append({"params": images, "factor": CLIP_FACTOR})
        return optimiser_of(self.network, groups)
