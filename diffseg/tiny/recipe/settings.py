"""The settings that decide the embedded model's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from diffseg.optim import cosine

__all__ = ["Recipe", "Stage", "stage_of"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of the UNet's training.

    Attributes:
        scenes: dead leaves, whole scenes, or captioned ones (diffseg.tiny.recipe.text_settings).
        steps, batch: how many, of how many samples.
        crop: side of the samples as a share of the scene's, 1 or 1/2.
        lr: learning rate at the start and at the end.
        warmup: steps of linear rise to the first rate.
        hold: steps at the first rate; then half a cosine to the second one.
        queries: sampled attention rows per image.
        clean_share: share of samples without noise, which is how DiffSeg presents an image.
    """

    scenes: Literal["leaves", "scenes", "captioned"]
    steps: int
    batch: int
    lr: tuple[float, float]
    crop: float = 1.0
    warmup: int = 0
    hold: int = 0
    queries: int = 64
    clean_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.clean_share < 1:
            raise ValueError(f"clean_share must lie in [0, 1), got {self.clean_share}")

    def learning_rate(self, step: int) -> float:
        """The rate of the stage's own step, 0 to steps − 1."""
        high, low = self.lr
        through = max(0.0, (step - self.hold) / (self.steps - self.hold))
        return (low + (high - low) * cosine(through)) * min(1.0, (step + 1) / max(1, self.warmup))


def stage_of(stages: Sequence[Stage], step: int) -> tuple[Stage, int]:
    """The stage of a step of the UNet's training, and the stage's own number of that step."""
    own = step
    for stage in stages:
        if own < stage.steps:
            return stage, own
        own -= stage.steps
    raise ValueError(f"step {step}: there are only {step - own}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights.

    Attributes:
        seed: of weights, crops and noise; scenes have their own seeds, counted from 0.
        size: side of the scenes in pixels.
        leaves, scenes: sizes of the two pools.
        vae_scenes, vae_steps, vae_batch, vae_lr: autoencoder, on half-size crops of the first scenes of leaves.
        stages: of the UNet, from plain to rich: what is learnt on leaves in minutes would take hours on whole scenes.
        attention_weight: of the attention loss beside the denoising loss.
        average: decay of the running average of the weights, which is what is exported.
    """

    seed: int = 0
    size: int = 256
    leaves: int = 4000
    scenes: int = 6000
    vae_scenes: int = 160
    vae_steps: int = 350
    vae_batch: int = 8
    vae_lr: float = 2e-3
    stages: tuple[Stage, ...] = (
        Stage(scenes="leaves", steps=1500, batch=12, crop=0.5, lr=(1.5e-3, 6e-4), warmup=200, hold=750, queries=48),
        Stage(scenes="leaves", steps=800, batch=6, lr=(9e-4, 0.0)),
        Stage(scenes="leaves", steps=450, batch=6, lr=(6e-4, 0.0)),
        Stage(
            scenes="scenes", steps=3000, batch=6, lr=(9e-4, 0.0), warmup=50, hold=1800, queries=128, clean_share=0.75
        ),
    )
    attention_weight: float = 0.5
    average: float = 0.998

    @property
    def unet_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def __post_init__(self) -> None:
        if self.size % 128:
            raise ValueError(
                f"size must be a multiple of 128, so that a crop of latents can be halved three times; got {self.size}"
            )
