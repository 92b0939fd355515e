"""Pictures of validation scenes with which a training can be followed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from PIL import Image

from diffseg.tiny.recipe.latents import encode_images, images_to_tensor
from diffseg.tiny.recipe.model import empty_context
from diffseg.tiny.recipe.objective import RowRecorder
from diffseg.tiny.scenes.scenes import VALIDATION_SEEDS, generate_scene

__all__ = ["save_reconstructions", "save_rows"]


@torch.no_grad()
def save_reconstructions(vae: AutoencoderTiny, path: Path, *, size: int = 256, count: int = 6) -> None:
    """Write a picture of validation scenes with their reconstructions by the autoencoder below them."""
    images = [generate_scene(seed, size).image for seed in VALIDATION_SEEDS[:count]]
    reconstruction = vae.decode(vae.encode(images_to_tensor(images)).latents).sample
    pixels = (reconstruction.clamp(-1, 1).permute(0, 2, 3, 1).numpy() * 127.5 + 127.5).astype(np.uint8)
    Image.fromarray(np.concatenate([np.concatenate(images, 1), np.concatenate(list(pixels), 1)])).save(path)


@torch.no_grad()
def save_rows(
    vae: AutoencoderTiny, unet: UNet2DConditionModel, scale: float, path: Path, *, size: int = 256, count: int = 4
) -> None:
    """Write a picture of validation scenes, each beside the aggregated attention rows of six positions at t = 300.

    A white dot marks the position of each row. The attention processor of `unet` must be a `RowRecorder`, as it is
    during training.
    """
    images = [generate_scene(seed, size).image for seed in VALIDATION_SEEDS[:count]]
    latents = encode_images(vae, images) * scale
    side = latents.shape[-1]
    positions = [(side * y // 4, side * x // 6) for y in (1, 3) for x in (1, 3, 5)]
    recorder = next(iter(unet.attn_processors.values()))
    assert isinstance(recorder, RowRecorder)
    recorder.start(torch.tensor([[y * side + x for y, x in positions]]).expand(count, -1), side)
    unet(latents, 300, empty_context(count))
    rows = recorder.aggregate().unflatten(-1, (side, side))
    heat = (rows / rows.amax((2, 3), keepdim=True)).numpy()
    strips = []
    for image, maps in zip(images, heat, strict=True):
        tiles = [image]
        for (y, x), row in zip(positions, maps, strict=True):
            row[y, x] = 1
            tiles.append(np.repeat((np.kron(row, np.ones((8, 8))) * 255).astype(np.uint8)[..., None], 3, 2))
        strips.append(np.concatenate(tiles, 1))
    Image.fromarray(np.concatenate(strips)).save(path)
