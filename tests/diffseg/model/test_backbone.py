"""Latents are scaled, and decoded to images, as in the pipelines of diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
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


@pytest.mark.parametrize("is_standardised", [False, True])
def test_decoded_images_are_those_of_the_pipeline(checkpoints: dict[str, Path], is_standardised: bool) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoints["sd1"])
    raw = 3 * torch.randn(2, 4, 8, 16)
    with torch.no_grad():
        expected = pipeline.image_processor.postprocess(pipeline.vae.decode(raw).sample, output_type="np")
    checkpoint = load_checkpoint(checkpoints["sd1"], decoder=True)
    mean, std = [0.5, -1.0, 2.0, 0.0], [4.0, 0.5, 1.0, 2.0]
    latents = raw * checkpoint.vae.config.scaling_factor
    if is_standardised:
        checkpoint.vae.register_to_config(latents_mean=mean, latents_std=std)
        mean_of_channel, std_of_channel = (torch.tensor(numbers)[:, None, None] for numbers in (mean, std))
        latents = (raw - mean_of_channel) * checkpoint.vae.config.scaling_factor / std_of_channel
    images = Backbone(checkpoint).decode(latents)
    assert images.dtype == torch.uint8
    assert images.float().std() > 2, "the images are not constant"
    torch.testing.assert_close(images.double(), torch.from_numpy(255.0 * expected).double(), rtol=0, atol=0.51)
