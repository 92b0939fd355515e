"""The checkpoint that ships with a text encoder: its layout is Stable Diffusion's, and it names what it was taught."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from safetensors import safe_open
from transformers import CLIPTextModel, CLIPTokenizer

from diffseg.model.checkpoint import load_checkpoint
from diffseg.model.layout import TINY, CheckpointError, resolve
from diffseg.scoring.overlap import covering, overlap
from diffseg.segmenter import Segmenter
from diffseg.tiny.recipe.text_settings import TEXT_CHECKPOINT
from diffseg.tiny.recipe.tokenizer import CONTEXT_TOKENS, caption_words
from diffseg.tiny.scenes.captioned import CaptionedScene, generate_captioned
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS
from diffseg.tiny.scenes.vocabulary import NOUNS


@pytest.fixture(scope="module")
def held_out() -> Sequence[CaptionedScene]:
    # Not the ones of the published table: a floor on those would invite tuning on them.
    return [generate_captioned(seed) for seed in HELD_OUT_SEEDS[1000:1010]]


def test_the_folder_is_small_and_complete() -> None:
    files = {str(path.relative_to(TEXT_CHECKPOINT)): path for path in TEXT_CHECKPOINT.rglob("*") if path.is_file()}
    assert sorted(files) == [
        "README.md",
        "diffseg.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert sum(path.stat().st_size for path in files.values()) < 15e6


def test_the_notes_and_the_card_say_what_it_is() -> None:
    notes = json.loads((TEXT_CHECKPOINT / "diffseg.json").read_text())
    assert len(notes["tau"]) == 3
    assert notes["resolution"] == 256
    assert "no photograph" in notes["trained_on"]
    recipe = notes["recipe"]
    assert recipe["steps_done"] == sum(stage["steps"] for stage in recipe["stages"]), "an unfinished training"
    card = (TEXT_CHECKPOINT / "README.md").read_text()
    assert all(noun in card for noun in NOUNS)
    assert "arbitrary" in card


def test_weights_are_finite_half_precision_and_the_autoencoder_is_that_of_tiny() -> None:
    parts = ("unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model")
    for part in parts:
        with safe_open(TEXT_CHECKPOINT / f"{part}.safetensors", framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                tensor = weights.get_tensor(name)
                assert tensor.dtype == torch.float16, name
                assert tensor.isfinite().all(), name
    assert (TEXT_CHECKPOINT / f"{parts[2]}.safetensors").read_bytes() == (TINY / f"{parts[2]}.safetensors").read_bytes()
    scales = [
        json.loads((folder / "vae/config.json").read_text())["scaling_factor"] for folder in (TEXT_CHECKPOINT, TINY)
    ]
    assert scales[0] == scales[1]


def test_diffusers_and_transformers_load_it_whole() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pipeline = StableDiffusionPipeline.from_pretrained(TEXT_CHECKPOINT).to(torch.float32)
    assert isinstance(pipeline.vae, AutoencoderTiny)
    assert isinstance(pipeline.text_encoder, CLIPTextModel)
    assert isinstance(pipeline.tokenizer, CLIPTokenizer)
    assert pipeline.tokenizer.model_max_length == CONTEXT_TOKENS
    assert pipeline.tokenizer.get_vocab() == dict(caption_words().ids)
    drawn = pipeline("grass and sky", num_inference_steps=2, height=256, width=256, output_type="np").images
    assert drawn.shape == (1, 256, 256, 3)


def test_it_goes_by_its_name_and_its_empty_prompt_has_77_tokens() -> None:
    assert resolve("tiny-text") == TEXT_CHECKPOINT
    checkpoint = load_checkpoint("tiny-text")
    assert checkpoint.context.shape == (1, CONTEXT_TOKENS, 64)
    with pytest.raises(CheckpointError, match="tiny and tiny-text"):
        resolve("tiny-texts")


def test_it_segments_without_a_caption(held_out: Sequence[CaptionedScene]) -> None:
    segmenter = Segmenter.from_pretrained("tiny-text", device="cpu")
    covered = [covering(overlap(scene.labels, segmenter(scene.image).labels)) for scene in held_out]
    assert np.mean(covered) > 0.8
