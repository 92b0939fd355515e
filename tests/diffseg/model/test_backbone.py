"""Latents are scaled as the checkpoint's own pipeline scales them."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import load_checkpoint


def test_latents_are_the_scaled_mean_of_the_posterior(checkpoints: dict[str, Path]) -> None:
    backbone = Backbone(load_checkpoint(checkpoints["sd1"]))
    pixels = torch.rand(2, 3, 64, 128) * 2 - 1
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoints["sd1"])
    with torch.no_grad():
        expected = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
    assert expected.shape == (2, 4, 8, 16)
    torch.testing.assert_close(backbone.latents(pixels), expected)
    assert torch.equal(backbone.latents(pixels), backbone.latents(pixels))
