"""Checkpoints of reduced width with random weights, in the same files as published Stable Diffusion checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small_models import POOLED_WIDTH, SECOND_TEXT_WIDTH, TEXT_WIDTH, small_unet, small_vae
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

LAYOUTS = ("sd1", "sd2", "sd2-768", "sdxl", "sdxl-prompt", "textless")
UNET, VAE, TEXT = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)
START, END = "<|startoftext|>", "<|endoftext|>"


def write_checkpoint(folder: Path, layout: str) -> None:
    """Write a checkpoint of one of LAYOUTS. sdxl embeds the empty prompt as zeros, sdxl-prompt does not."""
    family = layout.split("-")[0].replace("textless", "sd1")
    sample_size = 96 if layout == "sd2-768" else 16
    small_unet(family, sample_size=sample_size).save_pretrained(folder / "unet")
    small_vae().save_pretrained(folder / "vae")
    prediction = "v_prediction" if layout == "sd2-768" else "epsilon"
    scheduler = {"_class_name": "DDIMScheduler", "clip_sample": False, "steps_offset": 1, "prediction_type": prediction}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline",
        "_diffusers_version": "0.21.0",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    if family == "sdxl":
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
        index["force_zeros_for_empty_prompt"] = layout == "sdxl"
        write_text_encoder(folder / "text_encoder", TEXT_WIDTH)
        write_text_encoder(folder / "text_encoder_2", SECOND_TEXT_WIDTH, projection=POOLED_WIDTH, activation="gelu")
        write_tokenizer(folder / "tokenizer", padding=END)
        write_tokenizer(folder / "tokenizer_2", padding="!")
    elif layout == "textless":
        index["text_encoder"] = index["tokenizer"] = [None, None]
    else:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
        write_text_encoder(folder / "text_encoder", TEXT_WIDTH, activation="gelu" if family == "sd2" else "quick_gelu")
        write_tokenizer(folder / "tokenizer", padding="!" if family == "sd2" else END)
    write_json(folder / "model_index.json", index)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def change_json(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def write_text_encoder(
    folder: Path,
    width: int,
    *,
    projection: int | None = None,
    activation: str = "quick_gelu",
    layers: int = 3,
    intermediate: int | None = None,
) -> None:
    """Write random weights under the names in published files (text_model.…, with the position ids of old releases)."""
    words = len(vocabulary()[0])
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=intermediate or 2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        hidden_act=activation,
        projection_dim=projection or width,
        bos_token_id=0,
        eos_token_id=2,  # as in published configurations; the end token is then located as the largest id
        pad_token_id=1,
    )
    model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    published = ("text_model.", "text_projection.")
    named = {key if key.startswith(published) else f"text_model.{key}": value for key, value in weights.items()}
    named["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(named, file, metadata={"format": "pt"})


def vocabulary(merges: Sequence[str] = ("t h", "th e</w>", "a n")) -> tuple[dict[str, int], list[str]]:
    """Return a vocabulary for CLIP's byte-pair encoding, with all bytes and the merges, and the merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    words = [*symbols, *(f"{s}</w>" for s in symbols), *(m.replace(" ", "") for m in merges), START, END]
    return {word: number for number, word in enumerate(words)}, list(merges)


def merges_of(words: Iterable[str]) -> list[str]:
    """Return merges that make each word, in small ASCII letters, one token, by merging pairs from its left."""
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for pair in merges:
            for index in reversed(range(len(parts) - 1)):
                if tuple(parts[index : index + 2]) == pair:
                    parts[index : index + 2] = ["".join(pair)]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = ["".join(parts[:2])]
    return [" ".join(pair) for pair in merges]


def write_tokenizer(folder: Path, *, padding: str, words: Iterable[str] | None = None) -> None:
    """Write the four files of a published CLIP tokenizer.

    Args:
        folder: Folder of the tokenizer.
        padding: Padding token: the end token in SD 1.x, `!` in SD 2.x.
        words: Words that are to be one token each.
    """
    known, merges = vocabulary() if words is None else vocabulary(merges_of(words))
    write_json(folder / "vocab.json", known)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")

    def token(content: str) -> dict[str, Any]:
        return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    special = {"bos_token": token(START), "eos_token": token(END), "pad_token": padding, "unk_token": token(END)}
    write_json(folder / "special_tokens_map.json", special)
    marked = {
        name: value if isinstance(value, str) else {"__type": "AddedToken", **value} for name, value in special.items()
    }
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": 77,
            "tokenizer_class": "CLIPTokenizer",
            **marked,
        },
    )
