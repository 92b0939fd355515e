"""Sampling gives what plain loops and diffusers' own pipelines give, whether attention is recorded or not."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from small_models import small_unet

from diffseg.generation.sampler import Sampler
from diffseg.generation.schedule import STABLE_DIFFUSION
from diffseg.generation.settings import GenerationSettings
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import load_checkpoint

PROMPTS, SEEDS = ["the cat", "an owl and an ant"], [3, 2**40]
Make = Callable[..., Sampler]


@pytest.fixture(scope="module")
def make(checkpoints: dict[str, Path]) -> Make:
    """Return a function that makes a sampler of a small checkpoint, with another noise schedule if that is given."""
    load = functools.cache(lambda layout: load_checkpoint(checkpoints[layout], text=True, decoder=True))

    def make_sampler(layout: str = "sd1", schedule: dict[str, Any] | None = None, **settings: Any) -> Sampler:
        checkpoint = load(layout)
        if schedule is not None:
            checkpoint = dataclasses.replace(checkpoint, scheduler=schedule, sigma_data=schedule.get("sigma_data"))
        chosen = GenerationSettings(**{"steps": 3, "guidance": 3.0, **settings})
        return Sampler(Backbone(checkpoint), chosen, side=64, attention_timestep=300)

    return make_sampler


def predict(sampler: Sampler, latents: torch.Tensor, timestep: int, texts: list[str]) -> torch.Tensor:
    """Return the network's output for prompts, in float64."""
    checkpoint = sampler.backbone.checkpoint
    assert checkpoint.text is not None
    context = torch.cat([checkpoint.text.embed(text).context for text in texts])
    with torch.no_grad():
        return checkpoint.unet(latents.float(), timestep, encoder_hidden_states=context).sample.double()


@pytest.mark.parametrize(("prediction", "guidance"), [("epsilon", 3.0), ("v_prediction", 3.0), ("v_prediction", 1.0)])
def test_ddim_is_that_of_a_plain_loop_in_float64(make: Make, prediction: str, guidance: float) -> None:
    sampler = make(schedule={"prediction_type": prediction}, scheduler="ddim", guidance=guidance, negative_prompt="the")
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    signal = np.cumprod(1 - betas)
    latents = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    latents = latents.double()
    for timestep in (667, 334, 1):
        a, before = signal[timestep], signal[max(0, timestep - 333)]
        output = predict(sampler, latents, timestep, PROMPTS)
        if guidance != 1:
            negative = predict(sampler, latents, timestep, ["the"] * 2)
            output = negative + guidance * (output - negative)
        if prediction == "epsilon":
            clean, noise = (latents - (1 - a) ** 0.5 * output) / a**0.5, output
        else:
            clean, noise = a**0.5 * latents - (1 - a) ** 0.5 * output, a**0.5 * output + (1 - a) ** 0.5 * latents
        latents = before**0.5 * clean + (1 - before) ** 0.5 * noise
    found = sampler.sample(PROMPTS, SEEDS).latents
    torch.testing.assert_close(found.double(), latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("guidance", "passes"), [(1.0, 3), (3.0, 6)])
def test_without_guidance_each_step_is_one_pass(make: Make, guidance: float, passes: int) -> None:
    sampler, calls = make(guidance=guidance), list[int]()
    handle = sampler.backbone.checkpoint.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    sampler.sample(PROMPTS, SEEDS)
    handle.remove()
    assert len(calls) == passes


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of numpy 2 about diffusers
@pytest.mark.parametrize(
    ("layout", "kind", "settings"),
    [
        ("sd1", "EulerAncestralDiscreteScheduler", {"negative_prompt": "the"}),  # noise in every step
        ("sd1", "PNDMScheduler", {}),
        ("sdxl", "EulerDiscreteScheduler", {"negative_prompt": "the"}),  # pooled text and size
        ("sdxl", "EDMEulerScheduler", {}),
        ("sd2", "LCMScheduler", {"guidance": 1.0}),
    ],
)
def test_latents_are_those_of_the_pipelines_of_diffusers(
    make: Make, layout: str, kind: str, settings: dict[str, Any]
) -> None:
    schedule = {**STABLE_DIFFUSION, "_class_name": kind, "skip_prk_steps": True}
    if kind.startswith("EDM"):
        schedule = {"_class_name": kind, "sigma_data": 0.5}
    sampler = make(layout, schedule, **settings)
    expected = by_diffusers(sampler)
    torch.testing.assert_close(sampler.sample(PROMPTS, SEEDS).latents, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_latent_consistency_model_reads_the_guidance_instead_of_a_second_pass(make: Make) -> None:
    sampler = make("sd1", {**STABLE_DIFFUSION, "_class_name": "LCMScheduler"}, guidance=8.0)
    unet = small_unet("sd1", time_cond_proj_dim=8)
    checkpoint = dataclasses.replace(sampler.backbone.checkpoint, unet=unet)
    sampler = Sampler(Backbone(checkpoint), sampler.settings, side=64, attention_timestep=300)
    found = sampler.sample(PROMPTS, SEEDS).latents
    torch.testing.assert_close(found, by_diffusers(sampler), rtol=1e-3, atol=1e-3)


def by_diffusers(sampler: Sampler) -> torch.Tensor:
    """Return the latents of diffusers' pipeline with the parts, the settings and the noise of a sampler."""
    checkpoint, layout = sampler.backbone.checkpoint, "sdxl" if sampler.backbone.checkpoint.added else "sd"
    assert checkpoint.text is not None
    parts = {"vae": checkpoint.vae, "unet": checkpoint.unet, "scheduler": sampler.scheduler()}
    for suffix, (tokenizer, encoder) in zip(("", "_2"), checkpoint.text.parts, strict=False):
        parts |= {f"tokenizer{suffix}": tokenizer, f"text_encoder{suffix}": encoder}
    if layout == "sdxl":
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        further = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = diffusers.StableDiffusionPipeline(**parts, **further)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS,
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=sampler.settings.guidance,
        negative_prompt=[sampler.settings.negative_prompt] * 2 if sampler.settings.negative_prompt else None,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="latent",
    ).images


@pytest.mark.parametrize(("layout", "scheduler"), [("sd1", "checkpoint"), ("sdxl", "dpm++"), ("sd2", "lcm")])
def test_latents_are_the_same_with_and_without_recording(make: Make, layout: str, scheduler: str) -> None:
    sampler = make(layout, scheduler=scheduler)
    names = [sampler.backbone.name_context([classes]) for classes in (("cat", "owl"), ("ant",))]
    recorded = sampler.sample(PROMPTS, SEEDS, names, lambda attention: attention)
    assert recorded.self_attention is not None
    assert recorded.cross_attention is not None
    assert torch.equal(recorded.latents, sampler.sample(PROMPTS, SEEDS).latents)


def test_the_noise_of_an_image_is_that_of_its_seed_alone(make: Make) -> None:
    sampler = make(schedule={**STABLE_DIFFUSION, "_class_name": "EulerAncestralDiscreteScheduler"})
    first, second = sampler.sample(PROMPTS, SEEDS).latents
    swapped = sampler.sample(PROMPTS[::-1], SEEDS[::-1]).latents
    assert torch.equal(swapped[1], first)
    assert torch.equal(swapped[0], second)
    other = sampler.sample(PROMPTS, [SEEDS[0], 5]).latents
    assert torch.equal(other[0], first)
    assert not torch.allclose(other[1], second, atol=0.1)


def test_only_the_chosen_steps_are_recorded_and_self_attention_in_a_late_one(make: Make) -> None:
    sampler = make(scheduler="ddim", steps=10, record_from=300, record_to=700, schedule={})
    timesteps = sampler.scheduler().timesteps.tolist()
    assert [timesteps[step] for step in sorted(sampler.cross_steps)] == [601, 501, 401, 301]
    assert timesteps[sampler.self_step] == 301
    with pytest.raises(ValueError, match="no step lies in this range; the steps are at 901, 801"):
        make(scheduler="ddim", steps=10, record_from=910, schedule={})
