"""Prompts are embedded as by the checkpoint's own pipeline, and the tokens of names in them are located."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from small_checkpoints import LAYOUTS
from small_models import SECOND_TEXT_WIDTH, TEXT_WIDTH

from diffseg.model.checkpoint import load_checkpoint
from diffseg.model.layout import CheckpointError
from diffseg.model.text import Prompt, prompt_of_names

Copy = Callable[[str], Path]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "textless"])
def test_the_empty_prompt_is_embedded_as_by_the_checkpoints_own_pipeline(
    layout: str, checkpoints: dict[str, Path]
) -> None:
    """In each family, the unconditional half of classifier-free guidance is the embedding of the empty prompt."""
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
    assert set(checkpoint.added) == ({"text_embeds"} if sdxl else set())
    if sdxl:
        torch.testing.assert_close(checkpoint.added["text_embeds"], encoded[3], rtol=0, atol=1e-6)


def test_without_a_text_encoder_the_context_is_one_zero_token(checkpoints: dict[str, Path]) -> None:
    checkpoint = load_checkpoint(checkpoints["textless"])
    assert checkpoint.context.shape == (1, 1, TEXT_WIDTH)
    assert not checkpoint.context.any()


def test_text_encoders_of_another_width_are_refused(copy: Copy, checkpoints: dict[str, Path]) -> None:
    folder = copy("sd1")
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(checkpoints["sdxl"] / "text_encoder_2", folder / "text_encoder")
    with pytest.raises(CheckpointError, match=r"text encoder of .*: 48 features per token, but the UNet reads 32"):
        load_checkpoint(folder)


@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_a_prompt_is_embedded_as_by_the_checkpoints_own_pipeline(layout: str, checkpoints: dict[str, Path]) -> None:
    text = load_checkpoint(checkpoints[layout], text=True).text
    assert text is not None
    pipeline = (StableDiffusionXLPipeline if layout == "sdxl" else StableDiffusionPipeline).from_pretrained(
        checkpoints[layout]
    )
    for prompt in ("a red ball, the sky", "words " * 90):
        arguments = {"device": torch.device("cpu"), "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        with torch.no_grad():
            encoded = pipeline.encode_prompt(prompt, **arguments)
        embedding = text.embed(prompt)
        torch.testing.assert_close(embedding.context, encoded[0], rtol=0, atol=1e-6)
        if layout == "sdxl":
            torch.testing.assert_close(embedding.added["text_embeds"], encoded[2], rtol=0, atol=1e-6)


def test_the_tokens_of_names_are_located_by_characters(checkpoints: dict[str, Path]) -> None:
    """Names may have several tokens or words, follow punctuation, be repeated, or be truncated."""
    text = load_checkpoint(checkpoints["sd1"], text=True).text
    assert text is not None
    tokenizer = text.parts[0][0]

    def tokens_of_names(prompt: Prompt) -> list[str]:
        tokens = tokenizer(prompt.text, padding="max_length", truncation=True, max_length=77)["input_ids"]
        return [
            "".join(tokenizer.convert_ids_to_tokens([tokens[i] for i in columns])).replace("</w>", " ").strip()
            for columns in text.columns(prompt)
        ]

    assert tokens_of_names(prompt_of_names(["sky", "Red  ball", "T-shirt"], "a photograph, of: {}!")) == [
        "sky",
        "red ball",
        "t - shirt",
    ]
    caption = "the man's dog, a dog's man."
    repeated = Prompt(text=caption, names=("dog", "man"), spans=(((10, 13), (17, 20)), ((4, 7), (23, 26))))
    assert [caption[a:b] for spans in repeated.spans for a, b in spans] == ["dog", "dog", "man", "man"]
    assert tokens_of_names(repeated) == ["dog dog", "man man"]
    truncated = prompt_of_names(["x" * 80, "sky"])
    assert text.columns(truncated)[1] == []


def test_names_that_do_not_fit_are_split_into_several_prompts(checkpoints: dict[str, Path]) -> None:
    text = load_checkpoint(checkpoints["sd1"], text=True).text
    assert text is not None
    names = tuple(f"{chr(97 + i)}{chr(98 + i)}{chr(97 + i)}" for i in range(20)) * 2
    parts = text.split_to_fit(prompt_of_names(names, "a {} b"))
    assert sum((part.names for part in parts), ()) == names
    assert len(parts) > 1
    assert max(len(part.names) for part in parts) - min(len(part.names) for part in parts) <= len(parts)
    assert all(columns for part in parts for columns in text.columns(part))
    few = prompt_of_names(names[:3])
    assert text.split_to_fit(few) == [few]
    assert text.split_to_fit(prompt_of_names([])) == [prompt_of_names([])]


def test_a_checkpoint_without_text_encoder_is_refused_if_names_are_needed(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"has no text encoder, which is needed to read names; .* tiny-text"):
        load_checkpoint(checkpoints["textless"], text=True)
