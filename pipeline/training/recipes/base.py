"""The interface of a recipe, and what most recipes share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffseg.optim import cosine, optimiser_of
from pipeline.networks.build import create_network
from pipeline.training.recipes.settings import RecipeSettings

DIMENSIONS = 16
"""Dimensions of the embedding: up to this many segments of an image can have orthogonal vectors."""

WARM_UP = 0.05
"""Share of the steps during which the learning rate rises."""


class Recipe(ABC):
    """One way to train a network on a run. Each worker creates one.

    The constructor builds everything, drawing weights from torch's generator, which is seeded before.

    Attributes:
        settings: The settings of the training.
        network: Everything that is trained, and everything that a checkpoint must hold: also heads that are dropped
            after the training, and averages of weights, as buffers or as parameters without a gradient. The loop moves
            it to its device, and averages the gradients of all workers over it.
        config: What config.json says of the network that `trained` returns.
    """

    network: nn.Module
    config: dict[str, Any]

    def __init__(self, settings: RecipeSettings) -> None:
        self.settings = settings

    def create_network(self, class_names: Sequence[str]) -> nn.Module:
        """Return the network that will label, as `settings.network` and `settings.target` say, and set `config`.

        Args:
            class_names: Name of each class of the run, the background first; empty for a run without names.
        """
        settings = self.settings
        class_names = tuple(class_names) if settings.target == "classes" else ()
        dimensions = len(class_names) if settings.target == "classes" else DIMENSIONS
        network, about = create_network(
            settings.network,
            dimensions=dimensions,
            width=settings.width,
            class_names=class_names,
            backbone=settings.backbone,
        )
        self.describe(about, dimensions, class_names)
        return network

    def describe(self, about: Mapping[str, Any], dimensions: int, class_names: Sequence[str]) -> None:
        """Set `config`.

        Args:
            about: What rebuilds the network.
            dimensions: Number of its outputs at each position.
            class_names: Name of each output; empty if the outputs are no classes.
        """
        settings = self.settings
        shared = {"target": settings.target, "dimensions": dimensions, "size": settings.size}
        self.config = {**about, **shared, "class_names": tuple(class_names)}

    @abstractmethod
    def losses(
        self, network: nn.Module, batch: dict[str, Any], *, step: int, seed: tuple[int, ...], device: str | torch.device
    ) -> dict[str, Tensor]:
        """Compute the loss of a step.

        Everything random must follow from `seed`, or from torch's generator, which is seeded from it. A weight that
        takes part in the loss at any step must take part at every step, with a factor of 0 if need be, because
        torch's distributed training waits for the gradients of all weights.

        Args:
            network: `self.network`, or a wrapper of it that averages gradients; passes with a gradient go through it,
                one in each step.
            batch: The samples of `TrainSettings.dataset`, stacked.
            step: Number of steps done before.
            seed: Seed of the training, step and rank.
            device: Device of the network.

        Returns:
            `loss`, which carries the gradient, and parts of it for the records, each []. All steps have the same names.
        """

    def optimiser(self) -> torch.optim.Optimizer:
        """Return the optimiser of all weights. A group with a `factor` has that multiple of the learning rate."""
        return optimiser_of(self.network)

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate as a share of its maximum, after a share `progress` of the steps."""
        return progress / WARM_UP if progress < WARM_UP else cosine((progress - WARM_UP) / (1 - WARM_UP))

    def trained(self) -> nn.Module:
        """Return the network that is saved in MODEL, which `config` rebuilds and which labels."""
        return self.network
