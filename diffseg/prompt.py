"""The embedding of the empty prompt, as the checkpoint's own pipeline makes it; the text encoders are dropped after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from diffseg.layout import CheckpointError, read_json

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
    has_text = index.get("text_encoder", ["", ""])[1] is not None
    second = (folder / "text_encoder_2").is_dir()
    width = unet.config.cross_attention_dim
    if unet.config.addition_embed_type not in (None, ADDED_SDXL):
        raise CheckpointError(
            f"unet of {folder}: addition_embed_type is {unet.config.addition_embed_type}; expected none or {ADDED_SDXL}"
        )
    if not has_text:
        return torch.zeros(1, 1, width), {}
    if not second:
        context, _ = _encode(folder, "text_encoder", "tokenizer", penultimate=False)
        return context, {}
    parts = [_encode(folder, f"text_encoder{end}", f"tokenizer{end}", penultimate=True) for end in ("", "_2")]
    context = torch.cat([part[0] for part in parts], dim=-1)
    pooled = parts[1][1]
    if index.get("force_zeros_for_empty_prompt", True):
        context, pooled = torch.zeros_like(context), torch.zeros_like(pooled)
    if unet.config.addition_embed_type is None:
        return context, {}
    time_ids = torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]], dtype=torch.float32)
    return context, {"text_embeds": pooled, "time_ids": time_ids}


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
    if not (folder / tokenizer).is_dir():
        raise CheckpointError(f"{tokenizer} of {folder}: looked for {tokenizer}/vocab.json and merges.txt")
    config = read_json(folder / encoder / "config.json")
    projected = "CLIPTextModelWithProjection" in config.get("architectures", [])
    variant = None if any(".fp16." not in w.name for w in weights) else "fp16"
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "variant": variant}
    model_class = CLIPTextModelWithProjection if projected else CLIPTextModel
    model = model_class.from_pretrained(folder / encoder, dtype=torch.float32, **options).eval()
    words = CLIPTokenizer.from_pretrained(folder / tokenizer, local_files_only=True)
    tokens = words("", padding="max_length", max_length=model.config.max_position_embeddings, return_tensors="pt")
    with torch.inference_mode():
        output = model(tokens.input_ids, output_hidden_states=penultimate)
    states = output.hidden_states[-2] if penultimate else output.last_hidden_state
    return states.clone(), output[0].clone() if projected else torch.zeros(1, 0)
