"""The training of the embedded autoencoder (VAE), on crops of dead leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

from diffseg.optim import cosine, descend, optimiser_of, set_lr
from diffseg.tiny.recipe.latents import images_to_tensor
from diffseg.tiny.recipe.objective import region_targets
from diffseg.tiny.recipe.pictures import save_reconstructions
from diffseg.tiny.recipe.settings import Recipe
from diffseg.tiny.recipe.training_state import ProgressLog, load_state, save_state
from diffseg.tiny.scenes.leaves import generate_leaves
from diffseg.tiny.scenes.scenes import Scene

__all__ = ["train_autoencoder"]


def train_autoencoder(recipe: Recipe, vae: AutoencoderTiny, out: Path, *, save_every: int) -> None:
    """Train the autoencoder in place, from its last checkpoint if there is one.

    Args:
        recipe: Settings of the training.
        vae: Initialised autoencoder.
        out: Folder of the checkpoint, and of a picture of reconstructions.
        save_every: Steps between checkpoints.
    """
    optimiser = optimiser_of(vae)
    done = load_state(out / "vae.pt", vae=vae, optimiser=optimiser)
    if done >= recipe.vae_steps:
        return
    scenes = [Scene(*generate_leaves(seed, recipe.size)) for seed in range(recipe.vae_scenes)]
    progress = ProgressLog("autoencoder", recipe.vae_steps)
    vae.train()
    for step in range(done, recipe.vae_steps):
        rng = np.random.default_rng([recipe.seed, 0, step])
        set_lr(optimiser, recipe.vae_lr * min(1, (step + 1) / 50) * cosine(step / recipe.vae_steps))
        images, labels = _draw_crops(rng, scenes, recipe.vae_batch, recipe.size // 2)
        latents = vae.encode(images).latents
        reconstruction = F.mse_loss(vae.decode(latents).sample, images)
        distinct = _latent_loss(rng, latents, labels)
        # The decoder's tanh saturates on latents far from 0, and such latents would distort the common scale.
        bound = F.relu(latents.abs() - 2.5).mean()
        descend(reconstruction + 0.004 * distinct + 0.1 * bound, vae, optimiser)
        progress.add(step, mse=reconstruction.item(), distinct=distinct.item())
        if (step + 1) % save_every == 0 or step + 1 == recipe.vae_steps:
            save_state(out / "vae.pt", step + 1, vae=vae, optimiser=optimiser)
    vae.eval()
    save_reconstructions(vae, out / "autoencoder.png", size=recipe.size)


def _draw_crops(rng: np.random.Generator, scenes: list[Scene], count: int, side: int) -> tuple[Tensor, Tensor]:
    """Draw random crops: images, float32 [B, 3, side, side] in [-1, 1], and labels, int64 [B, side/4, side/4]."""
    images, labels = [], []
    for index in rng.integers(len(scenes), size=count):
        y, x = rng.integers(0, scenes[index].image.shape[0] - side + 1, size=2)
        images.append(scenes[index].image[y : y + side, x : x + side])
        labels.append(scenes[index].labels[y : y + side, x : x + side][2::4, 2::4])
    return images_to_tensor(images), torch.from_numpy(np.stack(labels).astype(np.int64))


def _latent_loss(rng: np.random.Generator, latents: Tensor, labels: Tensor) -> Tensor:
    """Return the KL divergence of region targets from a softmax over negative squared distances of latents, in nats.

    The loss is averaged over sampled positions. It makes the encoder preserve texture, and not only colour.
    """
    side = latents.shape[-1]
    queries = torch.from_numpy(rng.integers(side * side, size=(len(latents), 32)))
    target = region_targets(labels, queries, side)
    flat = latents.flatten(2).transpose(1, 2)
    sampled = flat.gather(1, queries[..., None].expand(-1, -1, flat.shape[-1]))
    rows = (-4 * torch.cdist(sampled, flat).square()).log_softmax(-1)
    return (torch.special.xlogy(target, target) - target * rows).sum(-1).mean()
