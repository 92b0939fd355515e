"""Train the UNet on encoded scenes, stage by stage."""

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
from diffseg.tiny.recipe.latents import Batch, Pool
from diffseg.tiny.recipe.model import empty_context
from diffseg.tiny.recipe.objective import RowRecorder, attention_loss, region_targets
from diffseg.tiny.recipe.optim import Progress, load_state, save_state
from diffseg.tiny.recipe.pictures import save_rows
from diffseg.tiny.recipe.settings import Recipe, Stage, stage_of

__all__ = ["Draw", "average_into", "draw_pass", "pass_losses", "train_denoiser", "weighted"]


def train_denoiser(
    recipe: Recipe,
    unet: UNet2DConditionModel,
    pools: Mapping[str, Pool],
    alphas: Tensor,
    out: Path,
    *,
    vae: AutoencoderTiny,
    save_every: int,
) -> None:
    """Train `unet` in place, or load what `out` holds of it and go on from there; it ends with its averaged weights.

    Args:
        recipe: settings.
        unet: as built.
        pools: encoded scenes, by the name that stages call them by; all of one scale.
        alphas: the scheduler's alphas_cumprod, float32 [1000].
        out: folder of the state.
        vae: encodes the scenes of the pictures to watch by.
        save_every: steps between checkpoints.
    """
    optimiser = optimiser_of(unet)
    average = {name: value.clone() for name, value in unet.state_dict().items()}
    steps = recipe.unet_steps
    scale = next(iter(pools.values())).scale
    done = load_state(out / "unet.pt", unet=unet, optimiser=optimiser, average=average)
    recorder = RowRecorder().attach(unet.train())
    progress, last = Progress("unet", steps), None
    for step in range(done, steps):
        stage, own_step = stage_of(recipe.stages, step)
        if stage is not last:  # the pace changes with the size of the samples
            progress, last = Progress("unet", steps), stage
        rng = np.random.default_rng([recipe.seed, 1, step])
        set_lr(optimiser, stage.learning_rate(own_step))
        batch = pools[stage.scenes].batch(rng, stage.batch, round(recipe.size // 8 * stage.crop))
        draw = draw_pass(stage, batch, alphas, rng)
        denoise, attend = pass_losses(unet, recorder, batch, draw, empty_context(stage.batch))
        descend(denoise + recipe.attention_weight * attend, unet, optimiser)
        average_into(average, unet, min(recipe.average, (1 + step) / (10 + step)))
        progress.add(step, denoise=denoise.item(), attend=attend.item())
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save_state(out / "unet.pt", step + 1, unet=unet, optimiser=optimiser, average=average)
            save_rows(vae, unet, scale, out / "rows.png", size=recipe.size)
    unet.load_state_dict(average)
    unet.eval().set_attn_processor(AttnProcessor2_0())


def average_into(average: dict[str, Tensor], network: torch.nn.Module, decay: float) -> None:
    """Let the running average of weights, in place, follow those of the network."""
    for name, value in network.state_dict().items():
        average[name].lerp_(value, 1 - decay)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What chance decides of one training pass.

    Attributes:
        t: timesteps, int64 [B].
        alpha: share of signal, float32 [B, 1, 1, 1]; 1 without noise.
        noisy: 1 or 0, float32 [B].
        noise: float32, as the latents.
        queries: of which attention is asked for, int64 [B, S].
    """

    t: Tensor
    alpha: Tensor
    noisy: Tensor
    noise: Tensor
    queries: Tensor


def draw_pass(stage: Stage, batch: Batch, alphas: Tensor, rng: np.random.Generator) -> Draw:
    """Draw timesteps, noise and queries for a batch."""
    count, side = len(batch.latents), batch.latents.shape[-1]
    # Half of the samples lie near the clean end, where DiffSeg works; clean ones carry any timestep, so that the exact
    # pass of DiffSeg (no noise, t = 300) is one that the network knows.
    late = np.where(rng.random(count) < 0.5, rng.integers(0, 200, count), rng.integers(20, 800, count))
    clean = rng.random(count) < stage.clean_share
    t = torch.from_numpy(np.where(clean, rng.integers(0, 600, count), late))
    noisy = torch.from_numpy(~clean).float()
    alpha = torch.where(noisy > 0, alphas[t], 1.0)[:, None, None, None]
    noise = torch.from_numpy(rng.standard_normal(batch.latents.shape, dtype=np.float32))
    queries = _sample_queries(rng, batch.labels, stage.queries, side)
    return Draw(t=t, alpha=alpha, noisy=noisy, noise=noise, queries=queries)


def pass_losses(
    unet: UNet2DConditionModel, recorder: RowRecorder, batch: Batch, draw: Draw, context: Tensor
) -> tuple[Tensor, Tensor]:
    """Denoising loss (v-prediction) and attention loss of one batch, both scalar; the recorder keeps the rows."""
    side, alpha = batch.latents.shape[-1], draw.alpha
    recorder.start(draw.queries, side)
    noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * draw.noise
    predicted = unet(noisy, draw.t, context).sample
    velocity = alpha.sqrt() * draw.noise - (1 - alpha).sqrt() * batch.latents
    errors = (predicted - velocity).square().mean((1, 2, 3))
    denoise = (errors * draw.noisy).sum() / draw.noisy.sum().clamp_min(1)
    rows = attention_loss(recorder, region_targets(batch.labels, draw.queries, side))
    return denoise, weighted(rows, alpha)


def weighted(losses_B: Tensor, alpha: Tensor) -> Tensor:
    """The mean by the share of signal: a region that noise has drowned cannot be attended to."""
    weight = alpha.flatten()
    return (losses_B * weight).sum() / weight.sum()


def _sample_queries(rng: np.random.Generator, labels_BYX: Tensor, count: int, side: int) -> Tensor:
    """Positions int64 [B, S], drawn by the inverse root of their region's area: regions large and small get a share."""
    picks = []
    for labels in labels_BYX[:, ::2, ::2].flatten(1).numpy():
        weight = np.bincount(labels)[labels] ** -0.5
        picks.append(rng.choice(side * side, size=count, p=weight / weight.sum()))
    return torch.from_numpy(np.stack(picks))
