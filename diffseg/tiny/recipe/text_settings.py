"""The settings that determine the weights of the embedded text model, and the captions that it is trained on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffseg.model.layout import EMBEDDED
from diffseg.tiny.recipe.settings import TrainingStage
from diffseg.tiny.scenes.vocabulary import NOUNS, Caption, compose_caption

__all__ = ["TEXT_CHECKPOINT", "TextRecipe", "training_caption"]

TEXT_CHECKPOINT = EMBEDDED["tiny-text"]
"""Folder of the embedded text model."""

_generation_stage = functools.partial(TrainingStage, scenes="captioned", timesteps="uniform", text_free=0.125)
"""A stage that teaches generation."""


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """All settings that determine the weights, except the weights of the text-free model that the training starts from.

    Attributes:
        seed: Seed of new weights, crops, noise and captions; the seeds of scenes count from 0 instead.
        size: Side of the scenes in pixels.
        captioned: Number of captioned scenes.
        scenes: Number of scenes without a caption.
        stages: Stages of the UNet and the text encoder. The first three teach masks and names, mostly at the clean end
            of the schedule; the others teach generation and keep the names.
        attention_weight: Weight of the attention loss; the denoising loss has weight 1.
        naming_weight: Weight of the naming loss.
        text_factor: Factor of the learning rate for new weights, those of the text encoder and of cross-attention.
        average: Highest decay of the running average of the weights. The decay starts at 0.1 in each stage and rises.
            The averaged weights are exported.
    """

    seed: int = 0
    size: int = 256
    captioned: int = 3000
    scenes: int = 1000
    stages: tuple[TrainingStage, ...] = (
        TrainingStage(
            scenes="captioned", steps=800, batch=16, crop=0.5, lr=(8e-4, 4e-4), warmup=50, hold=500, queries=64
        ),
        TrainingStage(scenes="captioned", steps=700, batch=8, lr=(8e-4, 0.0), warmup=20, hold=300, queries=96),
        TrainingStage(
            scenes="captioned", steps=330, batch=8, lr=(6e-4, 0.0), warmup=20, hold=100, queries=96, clean_share=0.75
        ),
        _generation_stage(steps=300, batch=16, crop=0.5, lr=(8e-4, 8e-4), warmup=50, clean_share=0.3),
        _generation_stage(steps=320, batch=8, lr=(8e-4, 6e-4), warmup=20, clean_share=0.3),
        _generation_stage(steps=200, batch=8, lr=(6e-4, 0.0), clean_share=0.4),
        _generation_stage(steps=720, batch=8, lr=(7e-4, 0.0), warmup=20, hold=370, clean_share=0.35),
    )
    attention_weight: float = 0.5
    naming_weight: float = 0.5
    text_factor: float = 2.5
    average: float = 0.998

    @property
    def steps(self) -> int:
        """Number of steps of all stages together."""
        return sum(stage.steps for stage in self.stages)


def training_caption(rng: np.random.Generator, classes: Sequence[int], *, clean: bool) -> Caption:
    """Draw the caption of a training sample.

    One caption in five omits nouns, whose regions then count as background. Half of the captions of clean samples also
    name absent nouns, up to all of them, as users do who label with a long list of names. The caption of a noisy sample
    names no absent noun, because it says what the network should draw.

    Args:
        rng: Source of all random numbers.
        classes: Classes that are visible in the sample.
        clean: True if the sample has no noise.
    """
    named = list(classes)
    if rng.random() < 0.2:
        named = [noun for noun in named if rng.random() < 0.5]
    if clean and rng.random() < 0.5:
        absent = rng.permutation([noun for noun in range(len(NOUNS)) if noun not in classes])
        named += absent[: rng.integers(1, len(absent) + 1)].tolist()
    return compose_caption(rng, named)
