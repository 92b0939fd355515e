"""CLIP, SigLIP and SigLIP 2 in the layout of transformers.

Axes: B images, N = h·w positions, W features of a token, D dimensions of the shared space, T texts.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffseg.clip.json_tokenizer import load_json_tokenizer, tokenizer_config
from diffseg.clip.layout import MEAN, STD, ClipLayout, colour_statistics
from diffseg.model.config_fields import check_clip
from diffseg.model.files import CLIP_FILES
from diffseg.model.layout import CheckpointError, listing, load_part, read_json, weights_variant
from diffseg.model.text_encoders import check_size, check_tokenizer_files, load_tokenizer

SIGLIP_MEAN, SIGLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""Colour statistics of SigLIP's training images, 0 to 1."""


def load(folder: Path, device: str) -> ClipLayout:
    """Load a CLIP, a SigLIP or a SigLIP 2 in float32, from safetensors and without remote code.

    Args:
        folder: Folder with config.json, model.safetensors and the files of a tokenizer.
        device: Torch device.

    Raises:
        CheckpointError: A file is missing, damaged or of another kind of model.
    """
    import transformers  # slow to import, and few runs name segments by CLIP

    config = _checked_config(folder)
    class_name, build = LAYOUTS[config["model_type"]]
    model_class, part = getattr(transformers, class_name), CLIP_FILES.part("")
    tokenizer = (
        load_tokenizer(folder, f"tokenizer of {folder}") if class_name == "CLIPModel" else _siglip_tokenizer(folder)
    )
    words = (config.get("text_config") or {}).get("vocab_size")
    if isinstance(words, int) and len(tokenizer) > words:
        raise CheckpointError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens, but its text encoder knows {words}"
        )
    variant = weights_variant(folder, str(folder), part, "float32")
    check_size(folder, str(folder), part, "float32", model_class)
    model = load_part(folder, "", model_class, dtype=torch.float32, variant=variant)
    mean, std = (MEAN, STD) if class_name == "CLIPModel" else (SIGLIP_MEAN, SIGLIP_STD)
    path = folder / "preprocessor_config.json"
    given = read_json(path) if path.is_file() else {}
    names = ("image_mean", "image_std")
    colours = colour_statistics(path, given.get(names[0], mean), given.get(names[1], std), names, device)
    return build(model.eval().requires_grad_(False).to(device), tokenizer, *colours)


def _checked_config(folder: Path) -> dict[str, Any]:
    """Check that a folder holds the files of a model of one of LAYOUTS, and return its configuration."""
    config = read_json(folder / "config.json")
    check_clip(folder / "config.json", config)
    kind = config.get("model_type")
    if kind not in LAYOUTS:
        raise CheckpointError(
            f"{folder}: is a {kind}; looked for a {' or '.join(LAYOUTS)} of transformers, or a model of open_clip"
        )
    if kind == "clip":
        check_tokenizer_files(folder, str(folder))
    elif (config.get("vision_config") or {}).get("vision_use_head") is False:
        raise CheckpointError(f"{folder / 'config.json'}: vision_use_head is false; expected a head, which names need")
    return config


def _siglip_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a SigLIP, whose class depends on the release: tokenizer.json, or else spiece.model."""
    if (folder / "tokenizer.json").is_file():
        tokenizer = load_json_tokenizer(folder)
    elif (folder / "spiece.model").is_file():
        tokenizer = _sentencepiece_tokenizer(folder)
    else:
        raise CheckpointError(f"{folder}: looked for tokenizer.json or spiece.model; found {listing(folder)}")
    # The first release was trained without punctuation (google-research/big_vision), the second with it.
    tokenizer.without_punctuation = (
        tokenizer_config(folder).get("tokenizer_class", "SiglipTokenizer") == "SiglipTokenizer"
    )
    return tokenizer


def _sentencepiece_tokenizer(folder: Path) -> Any:
    from transformers import SiglipTokenizer

    try:
        return SiglipTokenizer.from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        raise CheckpointError(
            f"{folder}: reading its spiece.model needs two libraries: pip install sentencepiece protobuf"
        ) from error
    except Exception as error:  # sentencepiece raises no class of its own
        raise CheckpointError(f"tokenizer of {folder}: its files do not load: {error}") from error


def clip_layout(model: Any, tokenizer: Any, mean: torch.Tensor, std: torch.Tensor) -> ClipLayout:
    """Return the layout of a CLIPModel: a class token, whose attention in the last block is the mixing of positions."""
    vision, config = model.vision_model, model.config.vision_config
    last = vision.encoder.layers[-1]
    longest = model.config.text_config.max_position_embeddings

    def last_input(pixels: torch.Tensor) -> torch.Tensor:
        """Return the last layer's input, [B, 1 + N, W]; positional embeddings are interpolated to other sizes."""
        return vision(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-2]

    def dense(pixels: torch.Tensor) -> torch.Tensor:
        states = last_input(pixels)
        tokens = states + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(states)))
        tokens = tokens + last.mlp(last.layer_norm2(tokens))
        return model.visual_projection(vision.post_layernorm(tokens[:, 1:]))

    def tokenize(texts: Sequence[str]) -> torch.Tensor:
        options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
        return tokenizer(list(texts), **options).input_ids

    return ClipLayout(
        model=model,
        mean=mean,
        std=std,
        patch=config.patch_size,
        image_size=config.image_size,
        dense=dense,
        values=lambda pixels: last.self_attn.v_proj(last.layer_norm1(last_input(pixels)))[:, 1:],
        # As in ProxyCLIP, without the residual and the MLP, which keep what each position was before.
        project=lambda values: model.visual_projection(vision.post_layernorm(last.self_attn.out_proj(values))),
        tokenize=tokenize,
        # No mask is needed: a token attends to none of the padding behind it, and only the end token is read.
        encode_tokens=lambda ids: model.text_projection(model.text_model(ids).pooler_output),
        token_embedding=model.text_model.embeddings.token_embedding,
        scale=model.logit_scale.exp(),
    )


def siglip_layout(model: Any, tokenizer: Any, mean: torch.Tensor, std: torch.Tensor) -> ClipLayout:
    """Return the layout of a SiglipModel: no class token, and a head that pools positions by attention."""

    def last_input(pixels: torch.Tensor) -> torch.Tensor:
        return model.vision_model(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-2]

    config = model.config.vision_config
    return _with_pooling_head(model, tokenizer, mean, std, last_input, config.image_size)


def siglip2_layout(model: Any, tokenizer: Any, mean: torch.Tensor, std: torch.Tensor) -> ClipLayout:
    """Return the layout of a Siglip2Model: as SigLIP, but it reads patches of images of any shape (NaFlex)."""
    config = model.config.vision_config
    patch = config.patch_size

    def last_input(pixels: torch.Tensor) -> torch.Tensor:
        grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
        patches = pixels.unflatten(3, (grid[1], patch)).unflatten(2, (grid[0], patch))  # [B, 3, h, patch, w, patch]
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # as the image processor orders them
        shapes = torch.tensor([grid] * len(pixels), device=pixels.device)
        vision = model.vision_model(
            patches, pixel_attention_mask=None, spatial_shapes=shapes, output_hidden_states=True
        )
        return vision.hidden_states[-2]

    return _with_pooling_head(model, tokenizer, mean, std, last_input, round(config.num_patches**0.5) * patch)


def _with_pooling_head(
    model: Any,
    tokenizer: Any,
    mean: torch.Tensor,
    std: torch.Tensor,
    last_input: Callable[[torch.Tensor], torch.Tensor],
    image_size: int,
) -> ClipLayout:
    """Return the layout of a model with a pooling head; `last_input` returns what its last block reads, [B, N, W].

    Both the attention of the last block and that of the head mix positions. Neither does here: see docs/decisions.md.
    """
    vision, longest = model.vision_model, model.config.text_config.max_position_embeddings
    last, head = vision.encoder.layers[-1], vision.head

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        """Return what the head reads, [B, N, W], when each position of the last block attends to itself alone."""
        states = last_input(pixels)
        tokens = states + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(states)))
        return vision.post_layernorm(tokens + last.mlp(last.layer_norm2(tokens)))

    def pool_each(tokens: torch.Tensor) -> torch.Tensor:
        """Pool each token by itself. The attention to one token is 1, so that its value takes the place of the mean."""
        return head(tokens.flatten(0, 1)[:, None]).unflatten(0, tokens.shape[:2])

    def tokenize(texts: Sequence[str]) -> torch.Tensor:
        prepared = [siglip_text(text, without_punctuation=tokenizer.without_punctuation) for text in texts]
        options = {"padding": "max_length", "truncation": True, "max_length": longest, "return_tensors": "pt"}
        return tokenizer(prepared, **options).input_ids

    return ClipLayout(
        model=model,
        mean=mean,
        std=std,
        patch=model.config.vision_config.patch_size,
        image_size=image_size,
        dense=lambda pixels: pool_each(encode(pixels)),
        # Mixing tokens before the head is mixing values in it, since the weights sum to 1.
        values=encode,
        project=pool_each,
        tokenize=tokenize,
        # Without a mask, as in training: the vector of a text is read at the last token, which may be padding.
        encode_tokens=lambda ids: model.text_model(ids).pooler_output,
        token_embedding=model.text_model.embeddings.token_embedding,
        scale=model.logit_scale.exp(),
        bias=model.logit_bias,
    )


def siglip_text(text: str, *, without_punctuation: bool) -> str:
    """Return a text as SigLIP was trained on: in lower case, and in its first release without punctuation."""
    if without_punctuation:
        text = re.sub(f"[{re.escape(string.punctuation)}]", "", text)
    return " ".join(text.lower().split())


LAYOUTS: Mapping[str, tuple[str, Callable[..., ClipLayout]]] = {
    "clip": ("CLIPModel", clip_layout),
    "siglip": ("SiglipModel", siglip_layout),
    "siglip2": ("Siglip2Model", siglip2_layout),
}
"""The class of transformers and the layout for each model_type of a configuration."""
