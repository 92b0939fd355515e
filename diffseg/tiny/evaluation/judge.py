"""A small network that finds the 18 nouns in images, to judge the images that the text model generates.

It is trained on rendered scenes alone, as the autoencoder of the model reconstructs them, so that it knows the blur of
its decoder. It shares nothing with the model that it judges except that autoencoder and the generator of the scenes.

Axes: B images, C classes, S side of the judge's input.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from diffseg.optim import cosine, descend, optimiser_of, set_lr
from diffseg.tiny.recipe.latents import LatentPool, images_to_tensor
from diffseg.tiny.recipe.training_state import ProgressLog, load_state, save_state
from diffseg.tiny.scenes.captioned import generate_captioned
from diffseg.tiny.scenes.scenes import Scene
from diffseg.tiny.scenes.vocabulary import NOUNS

__all__ = ["JudgeNetwork", "JudgeRecipe", "found_nouns", "segment", "train_judge"]

log = logging.getLogger(__name__)

SIDE = 128
"""Side S of the images that the judge reads, in pixels; its class maps have half of it."""
UNSURE = 255
"""Value of pixels to which the judge gives no class."""
FOUND_SHARE = 0.005
"""Smallest share of an image that a noun must cover to be found. Nouns in captions cover at least .008 of their scene,
and the judge is unsure at borders. With this share it finds 90 % of a caption's nouns on validation scenes."""


@dataclass(frozen=True, kw_only=True)
class JudgeRecipe:
    """Settings of the judge's training.

    Attributes:
        scenes: Number of rendered scenes.
        steps: Number of steps.
        batch: Scenes per step.
        lr: Highest learning rate; it falls to 0 along half a cosine.
        width: Channels of the finest level.
        seed: Seed of the weights and of all draws.
    """

    scenes: int = 1000
    steps: int = 4500
    batch: int = 16
    lr: float = 3e-3
    width: int = 16
    seed: int = 0


class JudgeNetwork(nn.Module):
    """A U-Net of three levels from float32 [B, 3, S, S] in [−1, 1] to class scores [B, C, S/2, S/2]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 3 * width, 4 * width)
        self.enter = _block(12, width)
        self.down = nn.ModuleList(_block(a, b) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_block(a + b, a) for a, b in pairwise(widths))
        self.leave = nn.Conv2d(width, len(NOUNS), 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.enter(F.pixel_unshuffle(images, 2))
        levels = [x]
        for block in self.down:
            x = block(F.avg_pool2d(x, 2))
            levels.append(x)
        for block, level in zip(reversed(self.up), reversed(levels[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), level], 1))
        return self.leave(x)


def _block(entering: int, leaving: int) -> nn.Sequential:
    """Return two convolutions with batch norm, whose statistics do not depend on what else an image shows."""
    layers: list[nn.Module] = []
    for channels in (entering, leaving):
        layers += [nn.Conv2d(channels, leaving, 3, padding=1, bias=False), nn.BatchNorm2d(leaving), nn.SiLU()]
    return nn.Sequential(*layers)


def train_judge(recipe: JudgeRecipe, vae: AutoencoderTiny, folder: Path, *, save_every: int = 100) -> JudgeNetwork:
    """Train the judge, from its last checkpoint if there is one.

    Args:
        recipe: Settings.
        vae: Autoencoder of the model.
        folder: Folder of the checkpoint and of encoded scenes in `captioned/`, which are those of
            `diffseg.tiny.recipe.train_text`. Training resumes from it if the process is killed.
        save_every: Steps between checkpoints.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = JudgeNetwork(recipe.width)
    optimiser = optimiser_of(network)
    done = load_state(folder / "judge.pt", network=network, optimiser=optimiser)
    if done < recipe.steps:
        pool = LatentPool.prepare(folder / "captioned", vae, _scene_with_classes, count=recipe.scenes, scale=1.0)
        decoded, labels = _decode(vae, pool.latents), torch.from_numpy(pool.labels).to(torch.int64)
        weight = torch.bincount(labels.flatten(), minlength=len(NOUNS)).clamp_min(1).float() ** -0.25
    progress = ProgressLog("judge", recipe.steps)
    for step in range(done, recipe.steps):
        rng = np.random.default_rng([recipe.seed, 3, step])
        set_lr(optimiser, recipe.lr * cosine(step / recipe.steps) * min(1.0, (step + 1) / 50))
        images, classes = _augment(*_crops(decoded, labels, recipe.batch, rng), rng)
        loss = F.cross_entropy(network.train()(images), classes, weight=weight)
        descend(loss, network, optimiser)
        progress.add(step, loss=loss.item())
        if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
            save_state(folder / "judge.pt", step + 1, network=network, optimiser=optimiser)
    return network.eval()


def _scene_with_classes(seed: int) -> Scene:
    scene = generate_captioned(seed)
    return Scene(scene.image, scene.classes)


@torch.no_grad()
def _decode(vae: AutoencoderTiny, latents: np.ndarray) -> Tensor:
    """Decode unscaled latents, float16 [N, 4, w, w], to images of the judge's side, float16 [N, 3, S, S] in [−1, 1]."""
    parts = torch.from_numpy(latents).float().split(8)
    return torch.cat([_shrink(vae.decode(part).sample.clamp(-1, 1)).half() for part in parts])


def _shrink(images: Tensor) -> Tensor:
    """Resize images to the judge's side."""
    return F.interpolate(images, (SIDE, SIDE), mode="area")


def _crops(images: Tensor, labels: Tensor, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw crops of half the side, float32 [B, 3, S/2, S/2], with their classes, int64 [B, S/4, S/4]."""
    side = labels.shape[-1] // 2
    drawn, corners = rng.integers(len(images), size=count), rng.integers(0, side + 1, size=(count, 2))
    places = list(zip(drawn.tolist(), *corners.T.tolist(), strict=True))
    pixels = [images[i, :, 2 * y : 2 * (y + side), 2 * x : 2 * (x + side)].float() for i, y, x in places]
    return torch.stack(pixels), torch.stack([labels[i, y : y + side, x : x + side] for i, y, x in places])


def _augment(images: Tensor, classes: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mirror half of the images, and vary contrast, brightness and noise."""
    mirrored = torch.from_numpy(rng.random(len(images)) < 0.5)
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    classes = torch.where(mirrored[:, None, None], classes.flip(2), classes)
    gain, offset, deviation = (
        torch.from_numpy(rng.uniform(low, high, (len(images), 1, 1, 1)).astype(np.float32))
        for low, high in ((0.85, 1.15), (-0.1, 0.1), (0, 0.06))
    )
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
    return (images * gain + offset + deviation * noise).clamp(-1, 1), classes


@torch.no_grad()
def segment(judge: JudgeNetwork, images: Sequence[np.ndarray]) -> np.ndarray:
    """Return the class of each pixel in images, uint8 [B, H, W, 3].

    Returns:
        uint8 [B, S/2, S/2], with `UNSURE` where no class has half of the probability.
    """
    probability, classes = judge(_shrink(images_to_tensor(images))).softmax(1).max(1)
    return torch.where(probability >= 0.5, classes, UNSURE).to(torch.uint8).numpy()


def found_nouns(classes: np.ndarray) -> set[int]:
    """Return the classes that cover at least `FOUND_SHARE` of a class map."""
    areas = np.bincount(classes.ravel(), minlength=UNSURE)[: len(NOUNS)]
    return set(np.flatnonzero(areas >= FOUND_SHARE * classes.size).tolist())
