"""The training set of the embedded UNet: scenes that are rendered once and stored as latents and small label maps.

Rendering and encoding a scene costs as much as half a training step, so storing scenes pays off after two passes over
them.

Axes: N scenes, B batch, H, W image, w side of the latents.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from diffseg.tiny.scenes.scenes import Scene

__all__ = ["LatentBatch", "LatentPool", "encode_images", "images_to_tensor"]

log = logging.getLogger(__name__)

CHUNK = 100
"""Scenes per file; at most these are lost if the process is killed."""


def images_to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """Convert images, uint8 [B, H, W, 3], to a tensor, float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


@torch.no_grad()
def encode_images(vae: AutoencoderTiny, images: Sequence[np.ndarray]) -> Tensor:
    """Encode images, uint8 [B, H, W, 3], to unscaled latents, float32 [B, 4, H/8, W/8]."""
    return vae.encode(images_to_tensor(images)).latents


@dataclass(frozen=True)
class LatentBatch:
    """Training samples.

    Attributes:
        latents: float32 [B, 4, w, w], of about unit variance.
        labels: int64 [B, 2w, 2w].
    """

    latents: Tensor
    labels: Tensor


@dataclass(frozen=True)
class LatentPool:
    """All encoded scenes of one kind.

    Attributes:
        latents: Unscaled latents, float16 [N, 4, w, w].
        labels: uint8 [N, 2w, 2w], every fourth pixel of a scene in each direction.
        scale: Factor that gives the latents unit variance.
    """

    latents: np.ndarray
    labels: np.ndarray
    scale: float

    @classmethod
    def prepare(
        cls,
        folder: Path,
        vae: AutoencoderTiny,
        generate: Callable[[int], Scene],
        count: int,
        scale: float | None = None,
    ) -> LatentPool:
        """Load the scenes of the first `count` seeds, after rendering and encoding the missing ones.

        Args:
            folder: Folder of the files; it is created if it is missing.
            vae: Encodes the scenes.
            generate: A function from a seed to a scene.
            count: Number of scenes.
            scale: Scale of another pool on which the same network is trained; None computes the scale of this pool.
        """
        folder.mkdir(parents=True, exist_ok=True)
        chunks = [
            _load_chunk(folder, vae, generate, range(first, min(first + CHUNK, count)))
            for first in range(0, count, CHUNK)
        ]
        latents = np.concatenate([latents for latents, _ in chunks])
        labels = np.concatenate([labels for _, labels in chunks])
        return cls(latents, labels, scale or 1 / float(latents.astype(np.float32).std()))

    def draw_batch(self, rng: np.random.Generator, count: int, side: int) -> LatentBatch:
        """Draw `count` scenes, each cropped at a random place to `side` latent positions."""
        full = self.latents.shape[-1]
        scenes = rng.integers(len(self.latents), size=count)
        corners = rng.integers(0, full - side + 1, size=(count, 2))
        latents = [self.latents[i, :, y : y + side, x : x + side] for i, (y, x) in zip(scenes, corners, strict=True)]
        labels = [
            self.labels[i, 2 * y : 2 * (y + side), 2 * x : 2 * (x + side)]
            for i, (y, x) in zip(scenes, corners, strict=True)
        ]
        return LatentBatch(
            torch.from_numpy(np.stack(latents)).float() * self.scale, torch.from_numpy(np.stack(labels)).to(torch.int64)
        )


def _load_chunk(
    folder: Path, vae: AutoencoderTiny, generate: Callable[[int], Scene], seeds: Iterable[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the latents and labels of the scenes of `seeds` from their file, which is written if it is missing."""
    seeds = list(seeds)
    path = folder / f"{seeds[0]:06d}-{len(seeds)}.npz"
    if not path.exists():
        scenes = [generate(seed) for seed in seeds]
        batches = [scenes[first : first + 4] for first in range(0, len(scenes), 4)]
        latents = torch.cat([encode_images(vae, [scene.image for scene in batch]) for batch in batches])
        labels = np.stack([scene.labels[2::4, 2::4] for scene in scenes]).astype(np.uint8)
        partial = path.with_suffix(".partial")
        with open(partial, "wb") as file:
            np.savez(file, latents=latents.numpy().astype(np.float16), labels=labels)
        os.replace(partial, path)
        log.info("%s: encoded %d scenes", folder.name, seeds[-1] + 1)
    with np.load(path) as file:
        return file["latents"], file["labels"]
