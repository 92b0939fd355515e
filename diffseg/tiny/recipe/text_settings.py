"""The settings that decide the weights of the embedded model that reads text, and what its captions say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffseg.model.layout import EMBEDDED
from diffseg.tiny.recipe.settings import Stage
from diffseg.tiny.scenes.vocabulary import NOUNS, Caption, compose_caption

__all__ = ["TEXT_CHECKPOINT", "TextRecipe", "training_caption"]

TEXT_CHECKPOINT = EMBEDDED["tiny-text"]


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """Everything that decides the weights, beside those of the text-free model that the training starts from.

    Attributes:
        seed: of new weights, crops, noise and captions; scenes have their own seeds, counted from 0.
        size: side of the scenes in pixels.
        captioned, scenes: sizes of the two pools.
        text_free: share of each batch that is of scenes without a caption, on which masks are learnt.
        stages: of the UNet and the text encoder.
        attention_weight, naming_weight: of the losses beside the denoising loss.
        text_factor: learning rate of what is new (text encoder, cross-attention) beside the rest's.
        average: decay of the running average of the weights, which is what is exported.
    """

    seed: int = 0
    size: int = 256
    captioned: int = 3000
    scenes: int = 1000
    text_free: float = 0.375
    stages: tuple[Stage, ...] = (
        Stage(scenes="captioned", steps=800, batch=16, crop=0.5, lr=(8e-4, 4e-4), warmup=50, hold=500, queries=64),
        Stage(scenes="captioned", steps=700, batch=8, lr=(8e-4, 0.0), warmup=20, hold=300, queries=96),
        Stage(
            scenes="captioned", steps=330, batch=8, lr=(6e-4, 0.0), warmup=20, hold=100, queries=96, clean_share=0.75
        ),
    )
    attention_weight: float = 0.5
    naming_weight: float = 0.5
    text_factor: float = 2.5
    average: float = 0.998

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def text_free_of(self, batch: int) -> int:
        """How many of a batch are without a caption."""
        return round(self.text_free * batch)

    def __post_init__(self) -> None:
        if not 0 <= self.text_free < 1:
            raise ValueError(f"text_free must lie in [0, 1), got {self.text_free}")


def training_caption(rng: np.random.Generator, classes: Sequence[int], *, clean: bool) -> Caption:
    """A caption of a training sample that shows `classes`.

    One in five leaves nouns out: what they name is then of the rest. Half of the clean samples name nouns that do not
    show, up to all there are, as whoever labels with a long list of names does; a noisy sample never does, for its
    caption tells the network what to draw.
    """
    named = list(classes)
    if rng.random() < 0.2:
        named = [noun for noun in named if rng.random() < 0.5]
    if clean and rng.random() < 0.5:
        absent = rng.permutation([noun for noun in range(len(NOUNS)) if noun not in classes])
        named += absent[: rng.integers(1, len(absent) + 1)].tolist()
    return compose_caption(rng, named)
