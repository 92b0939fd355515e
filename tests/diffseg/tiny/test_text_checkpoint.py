"""The embedded checkpoint `tiny-text`: it has the layout of Stable Diffusion, and it segments without a caption."""

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
from diffseg.tiny.recipe.tokenizer import CONTEXT_TOKENS, caption_tokenizer
from diffseg.tiny.recipe.train_text import CARD
from diffseg.tiny.scenes.captioned import CaptionedScene, generate_captioned
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS
from diffseg.tiny.scenes.vocabulary import NOUNS


@pytest.fixture(scope="module")
def held_out() -> Sequence[CaptionedScene]:
    # These are not the scenes of the published table, because a lower bound on those would invite tuning on them.
    return [generate_captioned(seed) for seed in HELD_OUT_SEEDS[1000:1010]]


def test_the_folder_is_complete_and_smaller_than_15_mb() -> None:
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


def test_diffseg_json_and_the_card_describe_the_model() -> None:
    settings = json.loads((TEXT_CHECKPOINT / "diffseg.json").read_text())
    assert len(settings["tau"]) == 3
    assert settings["resolution"] == 256
    assert "no photograph" in settings["trained_on"]
    recipe = settings["recipe"]
    assert recipe["steps_done"] == sum(stage["steps"] for stage in recipe["stages"]), "the training is unfinished"
    card = (TEXT_CHECKPOINT / "README.md").read_text()
    assert card == CARD.format(nouns=", ".join(NOUNS), steps=recipe["steps_done"])
    assert "arbitrary" in card


def test_weights_are_finite_half_precision_with_the_autoencoder_of_tiny() -> None:
    parts = ("unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model")
    for part in parts:
        with safe_open(TEXT_CHECKPOINT / f"{part}.safetensors", framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (safe_open is not a mapping)
                tensor = weights.get_tensor(name)
                assert tensor.dtype == torch.float16, name
                assert tensor.isfinite().all(), name
    assert (TEXT_CHECKPOINT / f"{parts[2]}.safetensors").read_bytes() == (TINY / f"{parts[2]}.safetensors").read_bytes()
    scales = [
        json.loads((folder / "vae/config.json").read_text())["scaling_factor"] for folder in (TEXT_CHECKPOINT, TINY)
    ]
    assert scales[0] == scales[1]


def test_diffusers_and_transformers_load_all_parts() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pipeline = StableDiffusionPipeline.from_pretrained(TEXT_CHECKPOINT).to(torch.float32)
    assert isinstance(pipeline.vae, AutoencoderTiny)
    assert isinstance(pipeline.text_encoder, CLIPTextModel)
    assert isinstance(pipeline.tokenizer, CLIPTokenizer)
    assert pipeline.tokenizer.model_max_length == CONTEXT_TOKENS
    assert pipeline.tokenizer.get_vocab() == dict(caption_tokenizer().ids)
    generated = pipeline("grass and sky", num_inference_steps=2, height=256, width=256, output_type="np").images
    assert generated.shape == (1, 256, 256, 3)


def test_the_model_loads_by_its_name_and_its_empty_prompt_has_77_tokens() -> None:
    assert resolve("tiny-text") == TEXT_CHECKPOINT
    checkpoint = load_checkpoint("tiny-text")
    assert checkpoint.context.shape == (1, CONTEXT_TOKENS, 64)
    with pytest.raises(CheckpointError, match="tiny and tiny-text"):
        resolve("tiny-texts")


def test_the_model_segments_without_a_caption(held_out: Sequence[CaptionedScene]) -> None:
    segmenter = Segmenter.from_pretrained("tiny-text", device="cpu")
    covered = [covering(overlap(scene.labels, segmenter(scene.image).labels)) for scene in held_out]
    assert np.mean(covered) > 0.8
