"""Weights of plain vision transformers in the layouts of timm and transformers, and in MODEL.

Only safetensors are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file
from torch import Tensor

from diffseg.model.layout import read_json
from pipeline.networks.size import check_size
from pipeline.networks.vit import PlainViT, ViTConfig, ViTSegmenter

HEAD_CHANNELS = 64
"""Channels of an attention head of timm's models, unless their config.json says something else."""

FILE = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
"""Files of weights: one, or several that an index lists."""

UNUSED = re.compile(r"(head|head_dist|pre_logits|pooler|classifier)\.|embeddings\.mask_token$")
"""Weights of layers that follow the tokens, such as classifiers; they are left out."""

PREFIX = re.compile(r"^(vit|deit)\.")
"""What a model of transformers with a head puts before the names of the weights below the head."""

TO_TIMM = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
"""Names of weights in the layout of transformers, and those of timm."""

PARTS = ("query", "key", "value")


def new_vit(plain: Mapping[str, Any], weights: str | None, dimensions: int) -> tuple[ViTSegmenter, dict[str, Any]]:
    """Return a network to be trained, and what config.json says of it.

    Args:
        plain: config.json of timm or of a ViT or DeiT of transformers; empty for a ViT-S/16.
        weights: Folder with the weights that the training starts from; None draws all of them.
        dimensions: Number of outputs.

    Raises:
        ValueError: The configuration or the weights are of another kind of model.
    """
    if weights is None:
        config = transformers_config(plain) if plain else ViTConfig()
        network = ViTSegmenter(config, dimensions)
    else:
        tensors = read_weights(Path(weights))
        if "architecture" in plain:
            config = timm_config(plain, tensors)
        else:
            config, tensors = transformers_config(plain, _processor(Path(weights))), from_transformers(tensors)
        network = ViTSegmenter(config, dimensions)
        load_weights(network.encoder, tensors, weights)
    return network, {"network": "vit", **config.plain()}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all weights of a folder in float32, without those of layers that follow the tokens."""
    paths = sorted(path for path in folder.iterdir() if FILE.fullmatch(path.name))
    tensors = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    own = {PREFIX.sub("", name): tensor.float() for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in own.items() if not UNUSED.match(name)}


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a ViT of transformers by the names of timm, with queries, keys and values in one tensor."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in TO_TIMM:
            name = re.sub(pattern, replacement, name)
        named[name] = tensor
    joined: dict[str, Tensor] = {}
    for name, tensor in named.items():
        match = re.fullmatch(r"(blocks\.\d+)\.attention\.attention\.(\w+)\.(weight|bias)", name)
        if match is None:
            joined[name] = tensor
        elif match[2] == PARTS[0]:
            parts = [named.get(f"{match[1]}.attention.attention.{part}.{match[3]}", tensor[:0]) for part in PARTS]
            joined[f"{match[1]}.attn.qkv.{match[3]}"] = torch.cat(parts)
    return joined


def load_weights(encoder: PlainViT, tensors: Mapping[str, Tensor], shown: str) -> None:
    """Load weights by the names of timm. Raise ValueError, which shows `shown`, if they do not fit."""
    own = encoder.state_dict()
    for problem, names in (("lack", own.keys() - tensors.keys()), ("have unknown", tensors.keys() - own.keys())):
        if names:
            raise ValueError(
                f"{shown}: the weights {problem} {min(names)}, one of {len(names)}; the network vit takes a plain "
                "vision transformer with a class token, as timm or transformers write it"
            )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise ValueError(f"{shown}: {name} is {list(tensor.shape)}, expected {list(own[name].shape)}")
    encoder.load_state_dict(dict(tensors))


def timm_config(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ViTConfig:
    """Return the configuration of a model of timm, whose sizes are those of its weights.

    Raises:
        ValueError: The model is not a plain vision transformer.
    """
    try:
        channels, _, patch, _ = tensors["patch_embed.proj.weight"].shape
        positions, hidden = tensors["pos_embed"].shape[1], len(tensors["blocks.0.mlp.fc1.bias"])
    except (KeyError, ValueError, TypeError):
        raise ValueError(
            f"architecture {plain.get('architecture')}: the network vit takes a plain ViT of timm"
        ) from None
    colours, arguments = plain.get("pretrained_cfg") or {}, plain.get("model_args") or {}
    return ViTConfig(
        patch=patch,
        channels=channels,
        blocks=len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        heads=arguments.get("num_heads", max(1, channels // HEAD_CHANNELS)),
        hidden=hidden,
        grid=math.isqrt(positions - 1),
        mean=tuple(colours.get("mean", ViTConfig.mean)),
        std=tuple(colours.get("std", ViTConfig.std)),
    )


def transformers_config(plain: Mapping[str, Any], processor: Mapping[str, Any] | None = None) -> ViTConfig:
    """Return the configuration of a ViT or DeiT of transformers.

    Args:
        plain: Its config.json.
        processor: Its preprocessor_config.json, which says how images are normalised.

    Raises:
        ValueError: The model is of another kind.
    """
    if plain.get("model_type") not in ("vit", "deit") or plain.get("hidden_act", "gelu") != "gelu":
        raise ValueError(
            f"model_type {plain.get('model_type')!r}, hidden_act {plain.get('hidden_act', 'gelu')!r}: the network vit "
            "takes vit or deit with gelu, or a plain ViT of timm"
        )
    processor, patch = processor or {}, plain.get("patch_size", 16)
    if not isinstance(patch, int) or patch < 1 or not isinstance(plain.get("image_size", 224), int):
        raise ValueError(
            f"patch_size {patch}, image_size {plain.get('image_size')}: expected squares of one number each"
        )
    return ViTConfig(
        patch=patch,
        channels=plain.get("hidden_size", 768),
        blocks=plain.get("num_hidden_layers", 12),
        heads=plain.get("num_attention_heads", 12),
        hidden=plain.get("intermediate_size", 3072),
        grid=plain.get("image_size", 224) // patch,
        epsilon=plain.get("layer_norm_eps", 1e-12),
        mean=tuple(processor.get("image_mean", ViTConfig.mean)),
        std=tuple(processor.get("image_std", ViTConfig.std)),
    )


def _processor(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    return read_json(path) if path.is_file() else {}


def saved_config(config: Mapping[str, Any]) -> ViTConfig:
    """Return the configuration of a trained network from its config.json."""
    own = {field.name: config[field.name] for field in fields(ViTConfig)}
    return ViTConfig(**own | {"mean": tuple(own["mean"]), "std": tuple(own["std"])})


def from_bytes(config: Mapping[str, Any], weights: bytes) -> ViTSegmenter:
    """Return the trained network of a config.json and the content of its file of weights.

    Raises:
        ValueError: They do not fit each other.
    """
    shape, tensors = saved_config(config), load(weights)
    check_size(lambda: ViTSegmenter(shape, config["dimensions"]), tensors)
    network = ViTSegmenter(shape, config["dimensions"])
    network.load_state_dict(tensors)
    return network
