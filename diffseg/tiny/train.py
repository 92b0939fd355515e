"""Train the embedded model from nothing but procedural scenes: `python -m diffseg.tiny.train --out tiny-training`.

Stages: autoencoder; pool of encoded scenes; UNet on 16x16 crops of latents; UNet on whole latents; export. Every random number of
a step follows from (seed, stage, step), so a killed run goes on from its last checkpoint to exactly the weights of an undisturbed one.
Schedules are in steps, never in seconds. One thread: about 65 minutes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from diffusers import AutoencoderTiny, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F

from diffseg.tiny.export import CHECKPOINT, export
from diffseg.tiny.model import build, empty_context
from diffseg.tiny.objective import RowRecorder, attention_loss, region_targets
from diffseg.tiny.pictures import save_reconstructions, save_rows
from diffseg.tiny.pool import Batch, Pool, to_network
from diffseg.tiny.scenes import Scene, generate_scene

__all__ = ["Recipe", "train"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights.

    Attributes:
        seed: of weights, crops and noise; scenes have their own seeds, counted from 0.
        size: side of the scenes in pixels.
        scenes: size of the pool.
        vae_scenes, vae_steps, vae_batch, vae_lr: autoencoder, on half-size crops of the pool's first scenes.
        crop_steps, crop_batch, crop_lr: UNet on quarter-area crops; learning rate at the start and at the end.
        whole_steps, whole_batch, whole_lr: UNet on whole latents; from this learning rate to 0.
        warmup: steps of linear warm-up.
        queries: sampled attention rows per image (crops, whole).
        attention_weight: of the attention loss beside the denoising loss.
        clean_share: share of samples without noise, which is how DiffSeg presents an image.
        average: decay of the running average of the weights, which is what is exported.
    """

    seed: int = 0
    size: int = 256
    scenes: int = 4000
    vae_scenes: int = 160
    vae_steps: int = 350
    vae_batch: int = 8
    vae_lr: float = 2e-3
    crop_steps: int = 1500
    crop_batch: int = 12
    crop_lr: tuple[float, float] = (1.5e-3, 6e-4)
    whole_steps: int = 1600
    whole_batch: int = 6
    whole_lr: float = 9e-4
    warmup: int = 200
    queries: tuple[int, int] = (48, 64)
    attention_weight: float = 0.5
    clean_share: float = 0.5
    average: float = 0.998

    def __post_init__(self) -> None:
        if self.size % 64:
            raise ValueError(f"size must be a multiple of 64, so that four halvings of latents fit; got {self.size}")
        if not 0 <= self.clean_share < 1:
            raise ValueError(f"clean_share must lie in [0, 1), got {self.clean_share}")


@dataclass
class Progress:
    """Loss averages and the time left, one log line at a time."""

    stage: str
    steps: int
    every: int
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    done_here: int = 0
    started: float = field(default_factory=time.perf_counter)

    def add(self, step: int, **losses: float) -> None:
        self.count, self.done_here = self.count + 1, self.done_here + 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if (step + 1) % self.every and step + 1 != self.steps:
            return
        pace = (time.perf_counter() - self.started) / self.done_here
        text = "  ".join(f"{name} {total / self.count:.4f}" for name, total in self.sums.items())
        left = pace * (self.steps - step - 1) / 60
        log.info(
            "%s %d/%d  %s  %.0f ms a step, %.1f min left", self.stage, step + 1, self.steps, text, 1000 * pace, left
        )
        self.sums, self.count = {}, 0


def train(recipe: Recipe, out: Path, *, save_every: int = 100) -> tuple[AutoencoderTiny, UNet2DConditionModel]:
    """Run all stages, or what is left of them, in the folder `out`; return the networks, averaged weights in the UNet.

    Args:
        recipe: must equal the one that `out` was begun with.
        out: holds the whole state; any number of kills is harmless.
        save_every: steps between checkpoints; does not change the result.
    """
    out.mkdir(parents=True, exist_ok=True)
    _claim(recipe, out / "recipe.json")
    vae, unet, scheduler = build(recipe.seed)
    _train_vae(recipe, vae, out, save_every)
    pool = Pool.prepare(out / "pool", vae, scenes=recipe.scenes, size=recipe.size)
    vae.register_to_config(scaling_factor=pool.scale)
    _train_unet(recipe, vae, unet, pool, scheduler.alphas_cumprod, out, save_every)
    return vae, unet


def _claim(recipe: Recipe, path: Path) -> None:
    settings = json.loads(json.dumps(dataclasses.asdict(recipe)))
    if path.exists() and (found := json.loads(path.read_text())) != settings:
        changed = {key: (found.get(key), value) for key, value in settings.items() if found.get(key) != value}
        raise ValueError(
            f"{path} was begun with other settings (there, here): {changed}. Use another --out or delete it."
        )
    path.write_text(json.dumps(settings, indent=2))


# --- autoencoder ----------------------------------------------------------------------------------------------------------------


def _train_vae(recipe: Recipe, vae: AutoencoderTiny, out: Path, save_every: int) -> None:
    optimiser = torch.optim.AdamW(vae.parameters(), lr=recipe.vae_lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    step = _load(out / "vae.pt", vae=vae, optimiser=optimiser)
    if step >= recipe.vae_steps:
        return
    scenes = [generate_scene(seed, recipe.size) for seed in range(recipe.vae_scenes)]
    progress = Progress("autoencoder", recipe.vae_steps, 25)
    vae.train()
    for step in range(step, recipe.vae_steps):
        rng = np.random.default_rng([recipe.seed, 0, step])
        _set_lr(optimiser, recipe.vae_lr * min(1, (step + 1) / 50) * _cosine(step / recipe.vae_steps))
        images, labels = _crops(rng, scenes, recipe.vae_batch, recipe.size // 2)
        latents = vae.encode(images).latents
        rebuilt = F.mse_loss(vae.decode(latents).sample, images)
        distinct = _latent_loss(rng, latents, labels)
        # Latents that stray far from 0 are squashed by the decoder's tanh, and spoil the common scale.
        bound = F.relu(latents.abs() - 2.5).mean()
        _descend(rebuilt + 0.004 * distinct + 0.1 * bound, vae, optimiser)
        progress.add(step, mse=rebuilt.item(), distinct=distinct.item())
        if (step + 1) % save_every == 0 or step + 1 == recipe.vae_steps:
            _save(out / "vae.pt", step + 1, vae=vae, optimiser=optimiser)
    vae.eval()
    save_reconstructions(vae, out / "autoencoder.png")


def _crops(rng: np.random.Generator, scenes: list[Scene], count: int, side: int) -> tuple[Tensor, Tensor]:
    """Random crops: images float32 [B, 3, side, side] in [-1, 1], labels int64 [B, side/4, side/4]."""
    images, labels = [], []
    for index in rng.integers(len(scenes), size=count):
        y, x = rng.integers(0, scenes[index].image.shape[0] - side + 1, size=2)
        images.append(scenes[index].image[y : y + side, x : x + side])
        labels.append(scenes[index].labels[y : y + side, x : x + side][2::4, 2::4])
    return to_network(images), torch.from_numpy(np.stack(labels).astype(np.int64))


def _latent_loss(rng: np.random.Generator, latents: Tensor, labels: Tensor) -> Tensor:
    """How far nearness of latents is from telling regions apart, in nats: asks the encoder to keep texture, not only colour."""
    side = latents.shape[-1]
    queries = torch.from_numpy(rng.integers(side * side, size=(len(latents), 32)))
    target = region_targets(labels, queries, side)
    flat = latents.flatten(2).transpose(1, 2)
    picked = flat.gather(1, queries[..., None].expand(-1, -1, flat.shape[-1]))
    rows = (-4 * torch.cdist(picked, flat).square()).log_softmax(-1)
    return (torch.special.xlogy(target, target) - target * rows).sum(-1).mean()


# --- UNet -----------------------------------------------------------------------------------------------------------------------


def _train_unet(
    recipe: Recipe,
    vae: AutoencoderTiny,
    unet: UNet2DConditionModel,
    pool: Pool,
    alphas: Tensor,
    out: Path,
    save_every: int,
) -> None:
    optimiser = torch.optim.AdamW(unet.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = {name: value.clone() for name, value in unet.state_dict().items()}
    steps = recipe.crop_steps + recipe.whole_steps
    step = _load(out / "unet.pt", unet=unet, optimiser=optimiser, average=average)
    recorder = RowRecorder().attach(unet.train())
    progress = Progress("unet", steps, 25)
    for step in range(step, steps):
        if step == recipe.crop_steps:  # the pace changes with the size of the samples
            progress = Progress("unet", steps, 25)
        rng = np.random.default_rng([recipe.seed, 1, step])
        _set_lr(optimiser, _unet_lr(recipe, step))
        whole = step >= recipe.crop_steps
        side = recipe.size // 8 // (1 if whole else 2)
        batch = pool.batch(rng, recipe.whole_batch if whole else recipe.crop_batch, side)
        denoise, attend = _unet_losses(recipe, unet, recorder, batch, alphas, rng, recipe.queries[whole])
        _descend(denoise + recipe.attention_weight * attend, unet, optimiser)
        decay = min(recipe.average, (1 + step) / (10 + step))
        for name, value in unet.state_dict().items():
            average[name].lerp_(value, 1 - decay)
        progress.add(step, denoise=denoise.item(), attend=attend.item())
        if (step + 1) % save_every == 0 or step + 1 == steps:
            _save(out / "unet.pt", step + 1, unet=unet, optimiser=optimiser, average=average)
            save_rows(vae, unet, pool.scale, out / "rows.png")
    unet.load_state_dict(average)
    unet.eval().set_attn_processor(AttnProcessor2_0())


def _unet_lr(recipe: Recipe, step: int) -> float:
    """Warm-up, constant, then cosine; the second stage starts higher than the first one ends."""
    if step >= recipe.crop_steps:
        return recipe.whole_lr * _cosine((step - recipe.crop_steps) / recipe.whole_steps)
    high, low = recipe.crop_lr
    through = max(0.0, 2 * step / recipe.crop_steps - 1)
    return (low + (high - low) * _cosine(through)) * min(1.0, (step + 1) / recipe.warmup)


def _unet_losses(
    recipe: Recipe,
    unet: UNet2DConditionModel,
    recorder: RowRecorder,
    batch: Batch,
    alphas: Tensor,
    rng: np.random.Generator,
    queries: int,
) -> tuple[Tensor, Tensor]:
    count, side = len(batch.latents), batch.latents.shape[-1]
    # Half of the samples lie near the clean end, where DiffSeg works; clean ones carry any timestep, so that the exact pass of
    # DiffSeg (no noise, t = 300) is one that the network knows.
    t = np.where(rng.random(count) < 0.5, rng.integers(0, 200, count), rng.integers(20, 800, count))
    clean = rng.random(count) < recipe.clean_share
    t = torch.from_numpy(np.where(clean, rng.integers(0, 600, count), t))
    noisy = torch.from_numpy(~clean).float()
    alpha = torch.where(noisy > 0, alphas[t], 1.0)[:, None, None, None]
    noise = torch.from_numpy(rng.standard_normal(batch.latents.shape, dtype=np.float32))
    picks = _sample_queries(rng, batch.labels, queries, side)
    recorder.start(picks, side)
    predicted = unet(alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * noise, t, empty_context(count)).sample
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * batch.latents
    denoise = ((predicted - velocity).square().mean((1, 2, 3)) * noisy).sum() / noisy.sum().clamp_min(1)
    # A region that noise has drowned cannot be attended to: weigh by the share of signal.
    weight = alpha.flatten()
    attend = (attention_loss(recorder, region_targets(batch.labels, picks, side)) * weight).sum() / weight.sum()
    return denoise, attend


def _sample_queries(rng: np.random.Generator, labels_BYX: Tensor, count: int, side: int) -> Tensor:
    """Positions int64 [B, S], drawn by the inverse root of their region's area: between pixels alike and regions alike."""
    picks = []
    for labels in labels_BYX[:, ::2, ::2].flatten(1).numpy():
        weight = np.bincount(labels)[labels] ** -0.5
        picks.append(rng.choice(side * side, size=count, p=weight / weight.sum()))
    return torch.from_numpy(np.stack(picks))


# --- shared ---------------------------------------------------------------------------------------------------------------------


def _cosine(through: float) -> float:
    return 0.5 + 0.5 * math.cos(math.pi * through)


def _set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr


def _descend(loss: Tensor, network: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, error_if_nonfinite=True)
    optimiser.step()


def _save(path: Path, step: int, **parts: Any) -> None:
    state = {name: part if isinstance(part, dict) else part.state_dict() for name, part in parts.items()}
    torch.save({"step": step, **state}, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def _load(path: Path, **parts: Any) -> int:
    """Restore the parts in place and return the step to go on with; 0 without a file."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        if isinstance(part, dict):
            part.update(state[name])
        else:
            part.load_state_dict(state[name])
    return state["step"]


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train the embedded model, going on from what --out holds, and export it.

    Attributes:
        out: working folder.
        checkpoint: where the diffusers folder is written.
        export: only export what --out holds, be it unfinished.
    """

    out: Path = Path("tiny-training")
    checkpoint: Path = CHECKPOINT
    export: bool = False
    recipe: Recipe = field(default_factory=Recipe)


def main(command: Command) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)  # the sums, and so the weights, depend on it
    if not command.export:
        train(command.recipe, command.out)
    vae, unet, scheduler = build(command.recipe.seed)
    average: dict[str, Tensor] = {}
    _load(command.out / "vae.pt", vae=vae)
    step = _load(command.out / "unet.pt", average=average)
    if average:
        unet.load_state_dict(average)
    pool = Pool.prepare(command.out / "pool", vae, scenes=command.recipe.scenes, size=command.recipe.size)
    vae.register_to_config(scaling_factor=pool.scale)
    export(vae, unet, scheduler, command.checkpoint, recipe={**dataclasses.asdict(command.recipe), "steps_done": step})
    log.info("wrote %s", command.checkpoint)


if __name__ == "__main__":
    main(tyro.cli(Command, description=Command.__doc__))
