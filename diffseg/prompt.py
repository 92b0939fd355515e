"""The embedding of the empty prompt, as the checkpoint's own pipeline makes it; the text encoders are dropped after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from diffseg.layout import CheckpointError, load_part, read_json

ADDED_SDXL = "text_time"
TIME_IDS = 6  # original size, crop corner, target size


def empty_prompt(
    folder: Path, unet: UNet2DConditionModel, resolution: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Context float32 [1, tokens, D] and the added conditioning (empty but for SDXL: text_embeds, time_ids).

    A checkpoint whose model_index.json has no text encoder is conditioned on one zero token. SDXL checkpoints that ask
    for zeros in place of an empty prompt (force_zeros_for_empty_prompt) get zeros. Raises CheckpointError.
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
    if not has_first:
        return torch.zeros(1, 1, unet.config.cross_attention_dim), {}
    if not has_second:
        context, _ = _encode(folder, "text_encoder", "tokenizer", penultimate=False)
        _check_width(folder, "text encoder", context, unet.config.cross_attention_dim)
        return context, {}
    parts = [_encode(folder, f"text_encoder{end}", f"tokenizer{end}", penultimate=True) for end in ("", "_2")]
    context = torch.cat([part[0] for part in parts], dim=-1)
    pooled = parts[1][1]
    _check_width(folder, "text encoders", context, unet.config.cross_attention_dim)
    embedded = unet.config.projection_class_embeddings_input_dim - TIME_IDS * unet.config.addition_time_embed_dim
    _check_width(folder, "projection of text_encoder_2", pooled, embedded)
    if index.get("force_zeros_for_empty_prompt", True):
        context, pooled = torch.zeros_like(context), torch.zeros_like(pooled)
    time_ids = torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]], dtype=torch.float32)
    return context, {"text_embeds": pooled, "time_ids": time_ids}


def _check_width(folder: Path, part: str, embedding: torch.Tensor, width: int) -> None:
    if embedding.shape[-1] != width:
        raise CheckpointError(f"{part} of {folder}: {embedding.shape[-1]} numbers a token; its UNet reads {width}")


def _encode(folder: Path, encoder: str, tokenizer: str, *, penultimate: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [1, tokens, D] and the pooled embedding [1, D'] of the empty prompt."""
    # transformers is slow to import, and `tiny` has no text encoder
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    weights = list((folder / encoder).glob("*.safetensors"))
    if not weights:
        raise CheckpointError(
            f"{encoder} of {folder}: looked for {encoder}/*.safetensors; "
            f"found {', '.join(sorted(p.name for p in (folder / encoder).glob('*'))) or 'nothing'}"
        )
    # Without its files the tokenizer would come out empty, and make an embedding of unknown words.
    files = sorted(path.name for path in (folder / tokenizer).glob("*"))
    if not {"vocab.json", "merges.txt"} <= set(files) and "tokenizer.json" not in files:
        raise CheckpointError(
            f"{tokenizer} of {folder}: looked for {tokenizer}/vocab.json and merges.txt (or tokenizer.json); "
            f"found {', '.join(files) or 'nothing'}"
        )
    architectures = read_json(folder / encoder / "config.json").get("architectures")
    classes = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
    if not architectures or architectures[0] not in classes:
        raise CheckpointError(f"{encoder} of {folder}: is a {architectures}; looked for {' or '.join(classes)}")
    projected = architectures[0] == "CLIPTextModelWithProjection"
    variant = None if any(".fp16." not in w.name for w in weights) else "fp16"
    model = load_part(folder, encoder, classes[architectures[0]], dtype=torch.float32, variant=variant).eval()
    try:
        words = CLIPTokenizer.from_pretrained(folder / tokenizer, local_files_only=True)
    except Exception as error:  # tokenizers raises no class of its own
        raise CheckpointError(f"{tokenizer} of {folder}: its files do not load: {error}") from error
    tokens = words("", padding="max_length", max_length=model.config.max_position_embeddings, return_tensors="pt")
    with torch.inference_mode():
        output = model(tokens.input_ids, output_hidden_states=penultimate)
    states = output.hidden_states[-2] if penultimate else output.last_hidden_state
    return states.clone(), output[0].clone() if projected else torch.zeros(1, 0)
