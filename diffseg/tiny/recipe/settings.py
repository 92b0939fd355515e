"""The settings that determine the weights of the embedded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from diffseg.optim import cosine

__all__ = ["Recipe", "TrainingStage", "stage_at"]


@dataclass(frozen=True, kw_only=True)
class TrainingStage:
    """One stage of the training of a UNet.

    Attributes:
        scenes: Pool of training scenes: dead leaves, whole scenes, or captioned scenes (for the text model).
        steps: Number of steps.
        batch: Samples per step.
        lr: Learning rate at the start and at the end.
        crop: Side of the samples as a share of the side of a scene, 1 or 1/2.
        warmup: Steps during which the rate rises linearly to its first value.
        hold: Steps before the rate begins to fall, along half a cosine, to its last value.
        queries: Sampled attention rows per image.
        clean_share: Share of samples without noise, in [0, 1); DiffSeg presents images without noise.
        timesteps: Distribution of the timesteps of samples with noise: half of them near the clean end of the schedule,
            where DiffSeg works, or uniform, for a model that generates images.
        text_free: Share of each batch that has no caption, in [0, 1). On these samples the text model learns masks;
            other models ignore it.
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
    timesteps: Literal["clean end", "uniform"] = "clean end"
    text_free: float = 0.375

    def __post_init__(self) -> None:
        for name in ("clean_share", "text_free"):
            if not 0 <= (share := getattr(self, name)) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {share}")

    @property
    def text_free_count(self) -> int:
        """Number of samples without a caption in a batch."""
        return round(self.text_free * self.batch)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, which is counted from 0 at the start of the stage."""
        high, low = self.lr
        through = max(0.0, (step - self.hold) / (self.steps - self.hold))
        return (low + (high - low) * cosine(through)) * min(1.0, (step + 1) / max(1, self.warmup))


def stage_at(stages: Sequence[TrainingStage], step: int) -> tuple[TrainingStage, int]:
    """Return the stage of a step and the number of that step within the stage; both count from 0.

    Raises:
        ValueError: The stages end before this step.
    """
    step_of_stage = step
    for stage in stages:
        if step_of_stage < stage.steps:
            return stage, step_of_stage
        step_of_stage -= stage.steps
    raise ValueError(f"step {step} is past the last stage: all stages together have {step - step_of_stage} steps")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings that determine the weights.

    Attributes:
        seed: Seed of initial weights, crops and noise; the seeds of scenes count from 0 instead.
        size: Side of the scenes in pixels, a multiple of 128.
        leaves: Number of dead-leaves scenes for the UNet.
        scenes: Number of whole scenes for the UNet.
        vae_scenes: Number of dead-leaves scenes for the autoencoder, which sees crops of half their side.
        vae_steps: Steps of the autoencoder.
        vae_batch: Samples per step of the autoencoder.
        vae_lr: Highest learning rate of the autoencoder.
        stages: Stages of the UNet, from simple to complex scenes, because the network learns in minutes on leaves what
            would take hours on whole scenes.
        attention_weight: Weight of the attention loss; the denoising loss has weight 1.
        average: Decay of the running average of the weights; the averaged weights are exported.
    """

    seed: int = 0
    size: int = 256
    leaves: int = 4000
    scenes: int = 6000
    vae_scenes: int = 160
    vae_steps: int = 350
    vae_batch: int = 8
    vae_lr: float = 2e-3
    stages: tuple[TrainingStage, ...] = (
        TrainingStage(
            scenes="leaves", steps=1500, batch=12, crop=0.5, lr=(1.5e-3, 6e-4), warmup=200, hold=750, queries=48
        ),
        TrainingStage(scenes="leaves", steps=800, batch=6, lr=(9e-4, 0.0)),
        TrainingStage(scenes="leaves", steps=450, batch=6, lr=(6e-4, 0.0)),
        TrainingStage(
            scenes="scenes", steps=3000, batch=6, lr=(9e-4, 0.0), warmup=50, hold=1800, queries=128, clean_share=0.75
        ),
    )
    attention_weight: float = 0.5
    average: float = 0.998

    @property
    def unet_steps(self) -> int:
        """Number of steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def __post_init__(self) -> None:
        if self.size % 128:
            raise ValueError(
                f"size must be a multiple of 128, so that a crop of latents can be halved three times, got {self.size}"
            )
