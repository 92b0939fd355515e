"""The training of the embedded UNet on encoded scenes, stage by stage.

Axes: B batch, S sampled queries, w side of the latents, Y and X rows and columns of labels (2w each).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from diffseg.optim import descend, optimiser_of, set_lr
from diffseg.tiny.recipe.latents import LatentBatch, LatentPool
from diffseg.tiny.recipe.model import empty_context
from diffseg.tiny.recipe.objective import RowRecorder, attention_loss, region_targets
from diffseg.tiny.recipe.pictures import save_rows
from diffseg.tiny.recipe.settings import Recipe, TrainingStage, stage_at
from diffseg.tiny.recipe.training_state import ProgressLog, load_state, save_state

__all__ = ["PassInputs", "draw_inputs", "pass_losses", "train_denoiser", "update_average", "weight_by_signal"]


def train_denoiser(
    recipe: Recipe,
    unet: UNet2DConditionModel,
    pools: Mapping[str, LatentPool],
    alphas: Tensor,
    out: Path,
    *,
    vae: AutoencoderTiny,
    save_every: int,
) -> None:
    """Train the UNet in place, from its last checkpoint if there is one, and leave it with its averaged weights.

    Args:
        recipe: Settings of the training.
        unet: Initialised UNet.
        pools: Encoded scenes, by the names that the stages use; all pools have the same scale.
        alphas: `alphas_cumprod` of the scheduler, float32 [1000].
        out: Folder of the checkpoint, and of a picture of attention rows.
        vae: Encodes the scenes of the picture.
        save_every: Steps between checkpoints.
    """
    optimiser = optimiser_of(unet)
    average = {name: value.clone() for name, value in unet.state_dict().items()}
    steps = recipe.unet_steps
    scale = next(iter(pools.values())).scale
    done = load_state(out / "unet.pt", unet=unet, optimiser=optimiser, average=average)
    recorder = RowRecorder().attach(unet.train())
    progress, previous = ProgressLog("unet", steps), None
    for step in range(done, steps):
        stage, step_of_stage = stage_at(recipe.stages, step)
        if stage is not previous:  # the duration of a step changes with the size of the samples
            progress, previous = ProgressLog("unet", steps), stage
        rng = np.random.default_rng([recipe.seed, 1, step])
        set_lr(optimiser, stage.learning_rate(step_of_stage))
        batch = pools[stage.scenes].draw_batch(rng, stage.batch, round(recipe.size // 8 * stage.crop))
        inputs = draw_inputs(stage, batch, alphas, rng)
        denoise, attend = pass_losses(unet, recorder, batch, inputs, empty_context(stage.batch))
        descend(denoise + recipe.attention_weight * attend, unet, optimiser)
        update_average(average, unet, min(recipe.average, (1 + step) / (10 + step)))
        progress.add(step, denoise=denoise.item(), attend=attend.item())
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save_state(out / "unet.pt", step + 1, unet=unet, optimiser=optimiser, average=average)
            save_rows(vae, unet, scale, out / "rows.png", size=recipe.size)
    unet.load_state_dict(average)
    unet.eval().set_attn_processor(AttnProcessor2_0())


def update_average(average: dict[str, Tensor], network: torch.nn.Module, decay: float) -> None:
    """Update the running average of a network's weights in place; `decay` is the weight of the previous average."""
    for name, value in network.state_dict().items():
        average[name].lerp_(value, 1 - decay)


@dataclass(frozen=True, kw_only=True)
class PassInputs:
    """The random inputs of one training pass.

    Attributes:
        t: Timesteps, int64 [B].
        alpha: Share of signal, float32 [B, 1, 1, 1]; 1 for samples without noise.
        noisy: 1 for samples with noise, else 0, float32 [B].
        noise: float32 of the shape of the latents.
        queries: Positions whose attention rows are recorded, int64 [B, S].
    """

    t: Tensor
    alpha: Tensor
    noisy: Tensor
    noise: Tensor
    queries: Tensor


def draw_inputs(stage: TrainingStage, batch: LatentBatch, alphas: Tensor, rng: np.random.Generator) -> PassInputs:
    """Draw timesteps, noise and queries for a batch."""
    count, side = len(batch.latents), batch.latents.shape[-1]
    if stage.timesteps == "uniform":
        timesteps = rng.integers(0, 1000, count)
    else:  # half of the timesteps lie near the clean end of the schedule, where DiffSeg works
        timesteps = np.where(rng.random(count) < 0.5, rng.integers(0, 200, count), rng.integers(20, 800, count))
    # Samples without noise are given any timestep below 600, so that the network is also trained on the exact pass of
    # DiffSeg: no noise, t = 300.
    clean = rng.random(count) < stage.clean_share
    t = torch.from_numpy(np.where(clean, rng.integers(0, 600, count), timesteps))
    noisy = torch.from_numpy(~clean).float()
    alpha = torch.where(noisy > 0, alphas[t], 1.0)[:, None, None, None]
    noise = torch.from_numpy(rng.standard_normal(batch.latents.shape, dtype=np.float32))
    queries = _sample_queries(rng, batch.labels, stage.queries, side)
    return PassInputs(t=t, alpha=alpha, noisy=noisy, noise=noise, queries=queries)


def pass_losses(
    unet: UNet2DConditionModel, recorder: RowRecorder, batch: LatentBatch, inputs: PassInputs, context: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the denoising loss (v-prediction) and the attention loss of one batch, both scalar.

    The recorder keeps the attention rows of the pass. `context` is float32 [B, tokens, channels].
    """
    side, alpha = batch.latents.shape[-1], inputs.alpha
    recorder.start(inputs.queries, side)
    noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * inputs.noise
    predicted = unet(noisy, inputs.t, context).sample
    velocity = alpha.sqrt() * inputs.noise - (1 - alpha).sqrt() * batch.latents
    errors = (predicted - velocity).square().mean((1, 2, 3))
    denoise = (errors * inputs.noisy).sum() / inputs.noisy.sum().clamp_min(1)
    rows = attention_loss(recorder, region_targets(batch.labels, inputs.queries, side))
    return denoise, weight_by_signal(rows, alpha)


def weight_by_signal(losses_B: Tensor, alpha: Tensor) -> Tensor:
    """Average losses weighted by the share of signal, because attention cannot follow a region hidden by noise."""
    weight = alpha.flatten()
    return (losses_B * weight).sum() / weight.sum()


def _sample_queries(rng: np.random.Generator, labels_BYX: Tensor, count: int, side: int) -> Tensor:
    """Draw positions, int64 [B, S], with probabilities that favour small regions.

    The probability of a position is proportional to the inverse square root of the area of its region.
    """
    positions = []
    for labels in labels_BYX[:, ::2, ::2].flatten(1).numpy():
        weight = np.bincount(labels)[labels] ** -0.5
        positions.append(rng.choice(side * side, size=count, p=weight / weight.sum()))
    return torch.from_numpy(np.stack(positions))
