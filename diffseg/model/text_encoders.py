"""Load the tokenizers and text encoders of a checkpoint, and check that they fit its UNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from diffseg.model.layout import CheckpointError, listing, load_part, read_json
from diffseg.model.text import TextEncoders

ADDED_SDXL = "text_time"
"""The UNet's `addition_embed_type` in SDXL."""

TIME_IDS = 6
"""Numbers of SDXL's size conditioning: original size, crop corner and target size."""


def load_text_encoders(folder: Path, unet: UNet2DConditionModel, resolution: int) -> TextEncoders:
    """Load the text encoders that model_index.json names, and check each against the UNet.

    Args:
        folder: The checkpoint.
        unet: Its UNet.
        resolution: Side of the input square in pixels, for the size conditioning of SDXL.

    Raises:
        CheckpointError: A part is missing, or does not fit the UNet.
    """
    index_file = folder / "model_index.json"
    index: dict[str, Any] = read_json(index_file) if index_file.is_file() else {}
    has_first = index.get("text_encoder", ["", ""])[1] is not None
    has_second = index.get("text_encoder_2", [None, None])[1] is not None
    added = unet.config.addition_embed_type == ADDED_SDXL
    if (added or has_second) and not (added and has_first and has_second):
        raise CheckpointError(
            f"{folder}: looked for text_encoder and text_encoder_2 in model_index.json and {ADDED_SDXL} as the UNet's "
            "addition_embed_type, which go together; a refiner has the second encoder alone and cannot be used"
        )
    width = unet.config.cross_attention_dim
    if not has_first:
        return TextEncoders(parts=[], width=width)
    suffixes = ("", "_2") if has_second else ("",)
    time_ids = torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]], dtype=torch.float32)
    encoders = TextEncoders(
        parts=[_load(folder, f"text_encoder{suffix}", f"tokenizer{suffix}") for suffix in suffixes],
        width=width,
        time_ids=time_ids if has_second else None,
        zeros_for_empty=has_second and index.get("force_zeros_for_empty_prompt", True),
    )
    empty = encoders.embed("")
    _check_width(folder, "text encoders" if has_second else "text encoder", empty.context, width)
    if has_second:
        pooled_width = (
            unet.config.projection_class_embeddings_input_dim - TIME_IDS * unet.config.addition_time_embed_dim
        )
        _check_width(folder, "projection of text_encoder_2", empty.added["text_embeds"], pooled_width)
    return encoders


def _check_width(folder: Path, part: str, embedding: torch.Tensor, width: int) -> None:
    if embedding.shape[-1] != width:
        raise CheckpointError(
            f"{part} of {folder}: {embedding.shape[-1]} features per token, but the UNet reads {width}"
        )


def check_tokenizer_files(folder: Path, shown: str) -> None:
    """Check that a CLIP tokenizer's folder holds its vocabulary, without which it would load as an empty tokenizer.

    Raises:
        CheckpointError: It does not; the message names the tokenizer as `shown`.
    """
    files = {path.name for path in folder.glob("*")}
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        raise CheckpointError(
            f"{shown}: looked for vocab.json and merges.txt (or tokenizer.json); found {listing(folder)}"
        )


def load_tokenizer(folder: Path, shown: str) -> Any:
    """Load a CLIP tokenizer from local files.

    Raises:
        CheckpointError: Its files do not load; the message names the tokenizer as `shown`.
    """
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises no class of its own
        raise CheckpointError(f"{shown}: its files do not load: {error}") from error


def _load(folder: Path, encoder: str, tokenizer: str) -> tuple[Any, Any]:
    """Return a tokenizer and its text encoder in float32."""
    # transformers is slow to import, and `tiny` has no text encoder.
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    weights = list((folder / encoder).glob("*.safetensors"))
    if not weights:
        raise CheckpointError(
            f"{encoder} of {folder}: looked for {encoder}/*.safetensors; found {listing(folder / encoder)}"
        )
    check_tokenizer_files(folder / tokenizer, f"{tokenizer} of {folder}")
    architectures = read_json(folder / encoder / "config.json").get("architectures")
    classes = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
    if not architectures or architectures[0] not in classes:
        raise CheckpointError(f"{encoder} of {folder}: is a {architectures}; looked for {' or '.join(classes)}")
    variant = None if any(".fp16." not in path.name for path in weights) else "fp16"
    model_class = classes[architectures[0]]
    model = load_part(folder, encoder, model_class, dtype=torch.float32, variant=variant).eval()
    return load_tokenizer(folder / tokenizer, f"{tokenizer} of {folder}"), model
