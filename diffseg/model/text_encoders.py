"""Load the tokenizers and text encoders of a checkpoint, and check that they fit its UNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from diffseg.model.config_fields import ADDED_SDXL, INDEX_FIELDS, TEXT_FIELDS, TIME_IDS
from diffseg.model.config_rules import check_config
from diffseg.model.files import CHECKPOINT_FILES, Part
from diffseg.model.layout import CheckpointError, listing, load_part, read_json, weights_variant
from diffseg.model.text import TextEncoders
from diffseg.settings import Dtype


def load_text_encoders(folder: Path, unet: UNet2DConditionModel, dtype: Dtype) -> TextEncoders:
    """Load the text encoders that model_index.json names, and check each against the UNet.

    Args:
        folder: The checkpoint.
        unet: Its UNet.
        dtype: Dtype of the run, on which depends which files of weights are read; the encoders are float32.

    Raises:
        CheckpointError: A part is missing, or does not fit the UNet.
    """
    index_file = folder / "model_index.json"
    index: dict[str, Any] = read_json(index_file) if index_file.is_file() else {}
    check_config(index_file, index, INDEX_FIELDS)
    has_first = index.get("text_encoder", ["", ""])[1] is not None
    has_second = index.get("text_encoder_2", [None, None])[1] is not None
    added = unet.config.addition_embed_type == ADDED_SDXL
    if (added or has_second) and not (added and has_first and has_second):
        raise CheckpointError(
            f"{folder}: looked for text_encoder and text_encoder_2 in model_index.json and {ADDED_SDXL} as the UNet's "
            "addition_embed_type, which go together; a refiner has the second encoder alone and cannot be used"
        )
    if not has_first:
        return TextEncoders(parts=[], width=unet.config.cross_attention_dim)
    suffixes = ("", "_2") if has_second else ("",)
    parts = [load_text_encoder(folder, f"text_encoder{suffix}", f"tokenizer{suffix}", dtype) for suffix in suffixes]
    return combine(folder, parts, unet, zeros_for_empty=bool(index.get("force_zeros_for_empty_prompt", True)))


def combine(
    shown: Path,
    parts: Sequence[tuple[Any, Any]],
    unet: UNet2DConditionModel,
    *,
    zeros_for_empty: bool = True,
) -> TextEncoders:
    """Combine one or two text encoders, and check that they fit the UNet.

    Args:
        shown: The checkpoint, for messages.
        parts: Pairs of a tokenizer and its encoder.
        unet: The UNet.
        zeros_for_empty: Whether two encoders embed the empty prompt as zeros.

    Raises:
        CheckpointError: The embeddings have another width than the UNet reads.
    """
    width, has_second = unet.config.cross_attention_dim, len(parts) > 1
    encoders = TextEncoders(parts=parts, width=width, zeros_for_empty=has_second and zeros_for_empty)
    empty = encoders.embed("")
    _check_width(shown, "text encoders" if has_second else "text encoder", empty.context, width)
    if has_second:
        pooled_width = (
            unet.config.projection_class_embeddings_input_dim - TIME_IDS * unet.config.addition_time_embed_dim
        )
        _check_width(shown, "projection of text_encoder_2", empty.added["text_embeds"], pooled_width)
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


def check_size(folder: Path, shown: str, part: Part, dtype: Dtype, model_class: Any) -> None:
    """Check that a configuration describes no more weights than the files can hold.

    transformers fills the weights that a file lacks with random numbers, in memory, before it reports them.

    Args:
        folder: Folder of the model.
        shown: How messages name the model.
        part: Which files the folder has.
        dtype: Dtype of the run.
        model_class: Class of the model, of transformers.

    Raises:
        CheckpointError: There are more weights than bytes, or the configuration is invalid.
    """
    try:
        with torch.device("meta"):
            model = model_class(model_class.config_class.from_dict(read_json(folder / "config.json")))
    except MemoryError:
        raise
    except Exception as error:  # wrong values raise errors of any class
        raise CheckpointError(f"{shown}: no model can be built from config.json: {error}") from error
    described = sum(weight.numel() for weight in model.parameters())
    names = [path.name for path in folder.glob("*.safetensors")]
    size = sum((folder / name).stat().st_size for name in part.select(names, dtype))
    if described > size:
        raise CheckpointError(
            f"{folder / 'config.json'}: describes {described} weights, but the files of weights have {size} bytes; "
            "expected at most one weight for each byte"
        )


def load_text_encoder(
    folder: Path, encoder: str = "text_encoder", tokenizer: str = "tokenizer", dtype: Dtype = "float32"
) -> tuple[Any, Any]:
    """Return a tokenizer of a checkpoint and its text encoder in float32. Raises CheckpointError."""
    # transformers is slow to import, and `tiny` has no text encoder.
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    shown, part = f"{encoder} of {folder}", CHECKPOINT_FILES.part(encoder)
    variant = weights_variant(folder / encoder, shown, part, dtype)
    check_tokenizer_files(folder / tokenizer, f"{tokenizer} of {folder}")
    config = read_json(folder / encoder / "config.json")
    check_config(folder / encoder / "config.json", config, TEXT_FIELDS)
    architectures = config.get("architectures")
    classes = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
    if not isinstance(architectures, list) or architectures[:1] not in [[name] for name in classes]:
        raise CheckpointError(f"{shown}: is a {architectures}; looked for {' or '.join(classes)}")
    model_class = classes[architectures[0]]
    check_size(folder / encoder, shown, part, dtype, model_class)
    model = load_part(folder, encoder, model_class, dtype=torch.float32, variant=variant).eval()
    return load_tokenizer(folder / tokenizer, f"{tokenizer} of {folder}"), model
