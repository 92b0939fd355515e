"""Passes are conditioned as diffusers' own pipelines condition them: by image size, guidance scale and noise level."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from small_checkpoints import change_json, write_json
from small_models import small_unet

from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import load_checkpoint
from diffseg.model.conditioning import guidance_embedding, noise_to_signal, precondition
from diffseg.model.layout import CheckpointError
from diffseg.model.text import prompt_of_names

Copy = Callable[[str], Path]


class Spy:
    """Keeps the arguments of the last pass of a UNet."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.positional: tuple[Any, ...] = ()
        self.named: dict[str, Any] = {}
        unet.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, _: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.positional, self.named = positional, named


def latent_consistency(folder: Path) -> Path:
    """Turn a checkpoint of SD 1.x into a latent consistency model, with weights that its guidance scale matters to."""
    shutil.rmtree(folder / "unet")
    unet = small_unet("sd1", time_cond_proj_dim=16)
    with torch.no_grad():
        unet.time_embedding.cond_proj.weight.normal_(0, 3)
    unet.save_pretrained(folder / "unet")
    change_json(folder / "model_index.json", _class_name="LatentConsistencyModelPipeline")
    change_json(folder / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    LCMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    return folder


def playground(folder: Path, scheduler: str = "EDMDPMSolverMultistepScheduler") -> Path:
    """Turn a checkpoint of SDXL into the layout of Playground v2.5."""
    change_json(folder / "model_index.json", scheduler=["diffusers", scheduler])
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": scheduler, "sigma_data": 0.5})
    mean, std = [-1.5, 1.25, 3.0, -0.75], [8.5, 6.0, 5.25, 5.5]
    change_json(folder / "vae" / "config.json", latents_mean=mean, latents_std=std, scaling_factor=0.5)
    return folder


def blank(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, 3, height, width) * 2 - 1


def test_sdxl_is_told_the_size_of_the_image_that_it_reads(checkpoints: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(checkpoints["sdxl"], text=True)
    pipeline = StableDiffusionXLPipeline.from_pretrained(checkpoints["sdxl"])
    pipeline.set_progress_bar_config(disable=True)
    ours, theirs, backbone = Spy(checkpoint.unet), Spy(pipeline.unet), Backbone(checkpoint)
    for height, width in ((128, 128), (64, 96)):  # the size that the model was trained at, and another
        pipeline("", height=height, width=width, num_inference_steps=1, guidance_scale=1, output_type="latent")
        expected = theirs.named["added_cond_kwargs"]["time_ids"]
        backbone.self_attention(blank(2, height, width), 300)
        assert torch.equal(ours.named["added_cond_kwargs"]["time_ids"], expected.expand(2, -1))
        backbone.attention(blank(2, height, width), 300, [[prompt_of_names(["sky"])]] * 2)
        assert torch.equal(ours.named["added_cond_kwargs"]["time_ids"], expected.expand(2, -1))
        assert expected[0].tolist() == [height, width, 0, 0, height, width]


def test_latent_consistency_models_are_told_a_guidance_scale(copy: Copy) -> None:
    folder = latent_consistency(copy("sd1"))
    checkpoint = load_checkpoint(folder)
    pipeline = LatentConsistencyModelPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs, ours, backbone = Spy(pipeline.unet), Spy(checkpoint.unet), Backbone(checkpoint)
    pipeline("", height=64, width=64, num_inference_steps=1, output_type="latent")
    pixels = blank(2, 64, 64)
    attention = backbone.self_attention(pixels, 300)
    expected = theirs.named["timestep_cond"].expand(2, -1)
    torch.testing.assert_close(ours.named["timestep_cond"], expected, rtol=0, atol=1e-6)
    without = backbone.recorder.self_attention(backbone.latents(pixels), 300, checkpoint.context.expand(2, -1, -1))
    assert (attention.maps[8, 8] - without.maps[8, 8]).abs().max() > 0.01, "as before, without the embedding"


@pytest.mark.parametrize("width", [4, 256, 257])
def test_a_guidance_scale_is_embedded_as_by_diffusers(width: int) -> None:
    embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    for scale in (1.0, 8.5):
        expected = embed(None, torch.tensor([scale - 1]), embedding_dim=width)
        torch.testing.assert_close(guidance_embedding(width, scale), expected, rtol=0, atol=1e-3)  # angles up to 7500


def test_the_schedule_is_that_of_stable_diffusion() -> None:
    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    for timestep in (0, 50, 300, 999):
        signal = float(schedule.alphas_cumprod[timestep])
        assert noise_to_signal(timestep) == pytest.approx(((1 - signal) / signal) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("scheduler_class", [EDMDPMSolverMultistepScheduler, EDMEulerScheduler])
@pytest.mark.parametrize("timestep", [50, 300])
def test_edm_models_are_preconditioned_as_by_their_scheduler(scheduler_class: Any, timestep: int, copy: Copy) -> None:
    checkpoint = load_checkpoint(playground(copy("sdxl"), scheduler_class.__name__))
    assert checkpoint.sigma_data == 0.5
    backbone, ours, scheduler = Backbone(checkpoint), Spy(checkpoint.unet), scheduler_class(sigma_data=0.5)
    sigma, pixels = torch.tensor(0.5 * noise_to_signal(timestep)), blank(2, 128, 128)
    backbone.self_attention(pixels, timestep)
    latents, timesteps = ours.positional
    expected = scheduler.precondition_inputs(backbone.latents(pixels), sigma)
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(timesteps, scheduler.precondition_noise(sigma).expand(2), rtol=1e-5, atol=0)


def test_a_noise_level_has_the_signal_to_noise_ratio_of_the_timestep() -> None:
    for sigma_data in (0.5, 1.0):
        scale, read_as = precondition(300, sigma_data)
        sigma = 2.718281828459045 ** (4 * read_as)
        assert sigma / sigma_data == pytest.approx(noise_to_signal(300))
        assert scale == pytest.approx((sigma**2 + sigma_data**2) ** -0.5)


def test_an_edm_scheduler_for_other_latents_is_refused(copy: Copy) -> None:
    folder = playground(copy("sdxl"))
    change_json(folder / "scheduler" / "scheduler_config.json", sigma_data=1.0)
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json: sigma_data is 1\.0, but .* deviation of 0\.5"):
        load_checkpoint(folder)


def test_only_runs_that_are_conditioned_in_a_new_way_say_so(checkpoints: dict[str, Path], copy: Copy) -> None:
    for layout in ("sd1", "sd2", "sd2-768", "textless"):
        assert Backbone(load_checkpoint(checkpoints[layout])).conditioning(64) == {}
    sdxl = Backbone(load_checkpoint(checkpoints["sdxl"]))
    assert (sdxl.conditioning(128), sdxl.conditioning(64)) == ({}, {"size": 64})
    assert Backbone(load_checkpoint(playground(copy("sdxl")))).conditioning(128) == {"sigma_data": 0.5}
    assert Backbone(load_checkpoint(latent_consistency(copy("sd1")))).conditioning(128) == {"guidance": 8.5}
