"""The empty prompt is what the checkpoint's own pipeline makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from small_checkpoints import LAYOUTS
from small_models import POOLED_WIDTH, SECOND_TEXT_WIDTH, TEXT_WIDTH

from diffseg.checkpoint import load_checkpoint
from diffseg.layout import CheckpointError

Copy = Callable[[str], Path]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "textless"])
def test_empty_prompt_is_that_of_the_checkpoints_own_pipeline(layout: str, checkpoints: dict[str, Path]) -> None:
    """The unconditional half of classifier-free guidance is what an empty prompt is in each family."""
    checkpoint = load_checkpoint(checkpoints[layout])
    sdxl = layout.startswith("sdxl")
    pipeline = (StableDiffusionXLPipeline if sdxl else StableDiffusionPipeline).from_pretrained(checkpoints[layout])
    arguments = {"device": torch.device("cpu"), "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    with torch.no_grad():
        encoded = pipeline.encode_prompt("a cat", **arguments)
    torch.testing.assert_close(checkpoint.context, encoded[1], rtol=0, atol=1e-6)
    assert checkpoint.context.shape == (1, 77, TEXT_WIDTH + (SECOND_TEXT_WIDTH if sdxl else 0))
    assert not torch.allclose(encoded[0], encoded[1])
    assert (checkpoint.context == 0).all() == (layout == "sdxl")
    assert set(checkpoint.added) == ({"text_embeds", "time_ids"} if sdxl else set())
    if sdxl:
        torch.testing.assert_close(checkpoint.added["text_embeds"], encoded[3], rtol=0, atol=1e-6)
        sides = pipeline._get_add_time_ids((128, 128), (0, 0), (128, 128), torch.float32, POOLED_WIDTH)
        assert torch.equal(checkpoint.added["time_ids"], sides)


def test_without_a_text_encoder_the_context_is_one_zero_token(checkpoints: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(checkpoints["textless"])
    assert checkpoint.context.shape == (1, 1, TEXT_WIDTH)
    assert not checkpoint.context.any()


def test_text_encoders_of_another_width_are_refused(copy: Copy, checkpoints: dict[str, Path]) -> None:
    folder = copy("sd1")
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(checkpoints["sdxl"] / "text_encoder_2", folder / "text_encoder")
    with pytest.raises(CheckpointError, match=r"text encoder of .*: 48 numbers a token; its UNet reads 32"):
        load_checkpoint(folder)
