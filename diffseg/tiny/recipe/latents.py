"""The training set of the embedded UNet: scenes rendered once, kept as latents and small label maps.

A scene costs as much to render and encode as half a training step, so a pool pays for itself after two passes over it.
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

__all__ = ["Batch", "Pool", "encode_images", "to_network"]

log = logging.getLogger(__name__)

CHUNK = 100  # scenes a file: what a kill can cost


def to_network(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


@torch.no_grad()
def encode_images(vae: AutoencoderTiny, images: Sequence[np.ndarray]) -> Tensor:
    """uint8 [B, H, W, 3] -> latents float32 [B, 4, H/8, W/8], before scaling."""
    return vae.encode(to_network(images)).latents


@dataclass(frozen=True)
class Batch:
    """Training samples: latents float32 [B, 4, w, w] of about unit variance, labels int64 [B, 2w, 2w]."""

    latents: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Pool:
    """All cached scenes.

    Attributes:
        latents: float16 [N, 4, w, w], unscaled.
        labels: uint8 [N, 2w, 2w], every fourth pixel of a 256 px scene.
        scale: what latents are multiplied by for unit variance.
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
    ) -> Pool:
        """Load the pool of the first `count` seeds in `folder`, rendering the chunks that are not there yet.

        scale: of another pool that the same network is trained on; None: this pool's own.
        """
        folder.mkdir(parents=True, exist_ok=True)
        chunks = [
            _chunk(folder, vae, generate, range(first, min(first + CHUNK, count))) for first in range(0, count, CHUNK)
        ]
        latents = np.concatenate([latents for latents, _ in chunks])
        labels = np.concatenate([labels for _, labels in chunks])
        return cls(latents, labels, scale or 1 / float(latents.astype(np.float32).std()))

    def batch(self, rng: np.random.Generator, count: int, side: int) -> Batch:
        """Random scenes, cropped at random to `side` latent positions."""
        full = self.latents.shape[-1]
        picks = rng.integers(len(self.latents), size=count)
        corners = rng.integers(0, full - side + 1, size=(count, 2))
        latents = [self.latents[i, :, y : y + side, x : x + side] for i, (y, x) in zip(picks, corners, strict=True)]
        labels = [
            self.labels[i, 2 * y : 2 * (y + side), 2 * x : 2 * (x + side)]
            for i, (y, x) in zip(picks, corners, strict=True)
        ]
        return Batch(
            torch.from_numpy(np.stack(latents)).float() * self.scale, torch.from_numpy(np.stack(labels)).to(torch.int64)
        )


def _chunk(
    folder: Path, vae: AutoencoderTiny, generate: Callable[[int], Scene], seeds: Iterable[int]
) -> tuple[np.ndarray, np.ndarray]:
    seeds = list(seeds)
    path = folder / f"{seeds[0]:06d}-{len(seeds)}.npz"
    if not path.exists():
        scenes = [generate(seed) for seed in seeds]
        parts = [scenes[first : first + 4] for first in range(0, len(scenes), 4)]
        latents = torch.cat([encode_images(vae, [scene.image for scene in part]) for part in parts])
        labels = np.stack([scene.labels[2::4, 2::4] for scene in scenes]).astype(np.uint8)
        aside = path.with_suffix(".partial")
        with open(aside, "wb") as file:
            np.savez(file, latents=latents.numpy().astype(np.float16), labels=labels)
        os.replace(aside, path)
        log.info("pool: %d scenes", seeds[-1] + 1)
    with np.load(path) as file:
        return file["latents"], file["labels"]
