"""Models of open_clip, such as MobileCLIP, which is an extra: pip install 'diffseg-pipeline[open-clip]'.

A folder holds open_clip_config.json and open_clip_model.safetensors, as on the hub, and a tokenizer.json if the model
has another tokenizer than OpenAI's.

Axes: B images, N = h·w positions, W features of a token, C channels of a convolutional network, D dimensions of the
shared space, T texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from diffseg.clip.layout import MEAN, STD, ClipLayout, colour_statistics
from diffseg.clip.open_clip_config import read_config
from diffseg.model.files import OPEN_CLIP_FILES
from diffseg.model.layout import CheckpointError, listing, weights_variant


class Tower(NamedTuple):
    """The functions of a `ClipLayout` that read images, and the pixels per side of a position."""

    patch: int
    dense: Callable[[torch.Tensor], torch.Tensor]
    values: Callable[[torch.Tensor], torch.Tensor]
    project: Callable[[torch.Tensor], torch.Tensor]


def load(folder: Path, device: str) -> ClipLayout:
    """Load a model of open_clip in float32, from safetensors only.

    Args:
        folder: Folder with open_clip_config.json and open_clip_model.safetensors.
        device: Torch device.

    Raises:
        CheckpointError: open_clip is not installed, a file is missing or damaged, or the image encoder is of a kind
            whose last layer is not known here.
    """
    try:
        import open_clip
    except ImportError as error:
        raise CheckpointError(
            f"{folder}: is a model of open_clip, which does not load on this machine ({error}): pip install "
            "'diffseg-pipeline[open-clip]'"
        ) from error
    path = folder / OPEN_CLIP_FILES.config
    config = read_config(path)
    model_config = config["model_cfg"]
    weights = _weights(folder)
    _check_size(folder, model_config, weights)
    model = _build(folder, model_config)
    missing = model.load_state_dict(weights, strict=False).missing_keys
    if missing:
        raise CheckpointError(f"{folder}: its files lack weights: {missing[0]} is one of {len(missing)}")
    model.eval().requires_grad_(False).to(device)
    given = config.get("preprocess_cfg") or {}
    mean, std = colour_statistics(path, given.get("mean", MEAN), given.get("std", STD), ("mean", "std"), device)
    tower = _tower(folder, model.visual)
    tokenize = _tokenizer(folder, model_config["text_cfg"], open_clip)
    image_size = model_config["vision_cfg"].get("image_size", 224)
    return ClipLayout(
        model=model,
        mean=mean,
        std=std,
        image_size=image_size,
        **tower._asdict(),
        embed_texts=lambda texts: model.encode_text(tokenize(texts).to(mean.device)),
        scale=model.logit_scale.exp(),
        bias=model.logit_bias,
    )


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read the weights as float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    part = OPEN_CLIP_FILES.part("")
    weights_variant(folder, str(folder), part, "float32")
    weights: dict[str, torch.Tensor] = {}
    for name in part.select([path.name for path in folder.glob("*.safetensors")]):
        try:
            weights |= load_file(folder / name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder / name}: does not load: {error}") from error
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def _build(folder: Path, model_config: Mapping[str, Any]) -> Any:
    """Build the network of a configuration with random weights. Nothing is downloaded."""
    from open_clip.model import CLIP, CustomTextCLIP

    fields = {name: value for name, value in model_config.items() if name not in ("custom_text", "multimodal_cfg")}
    fields["vision_cfg"] = {**model_config["vision_cfg"], "timm_model_pretrained": False}
    try:
        return (CustomTextCLIP if model_config.get("custom_text") else CLIP)(**fields)
    except MemoryError:
        raise
    except Exception as error:  # wrong values raise errors of any class
        raise CheckpointError(
            f"{folder}: no model can be built from {OPEN_CLIP_FILES.config}: {error}. A newer open_clip_torch or timm "
            "may know it"
        ) from error


def _check_size(folder: Path, model_config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Check that the configuration describes no more weights than the files hold, before memory is allocated."""
    with torch.device("meta"):
        described = sum(weight.numel() for weight in _build(folder, model_config).parameters())
    held = sum(weight.numel() for weight in weights.values())
    if described > held:
        raise CheckpointError(
            f"{folder / OPEN_CLIP_FILES.config}: describes {described} weights, but the files hold {held}"
        )


def _tokenizer(folder: Path, config: Mapping[str, Any], open_clip: Any) -> Callable[[Sequence[str]], torch.Tensor]:
    """Return the function that turns texts into token ids, int64 [T, L]."""
    length = config.get("context_length", 77)
    if not config.get("hf_tokenizer_name"):
        simple = open_clip.SimpleTokenizer(context_length=length)  # its vocabulary is part of the package
        return lambda texts: simple(list(texts))
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder}: looked for tokenizer.json; found {listing(folder)}")
    from open_clip.tokenizer import get_clean_fn
    from transformers import PreTrainedTokenizerFast

    clean = get_clean_fn((config.get("tokenizer_kwargs") or {}).get("clean", "whitespace"))
    try:
        # A class of ours, and not the one that the folder names: a folder's own class could be code.
        fast = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises no class of its own
        raise CheckpointError(f"tokenizer of {folder}: its files do not load: {error}") from error

    def tokenize(texts: Sequence[str]) -> torch.Tensor:
        options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        return fast([clean(text) for text in texts], **options).input_ids

    return tokenize


def _tower(folder: Path, visual: Any) -> Tower:
    """Return how an image encoder of open_clip is read."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        if isinstance(visual.transformer.resblocks[-1], ResidualAttentionBlock):
            return _vision_transformer(visual)
    elif isinstance(visual, ModifiedResNet):
        return _resnet(visual)
    elif isinstance(visual, TimmModel) and not hasattr(visual.head, "pool"):
        if hasattr(visual.trunk, "blocks"):
            return _timm_transformer(folder, visual)
        if hasattr(visual.trunk, "feature_info"):
            return _timm_convolutional(visual)
    raise CheckpointError(
        f"{folder}: its image encoder is a {type(visual).__name__} whose last layer this program does not know; "
        "expected a vision transformer, a ResNet, or a model of timm that pools its features without weights or as "
        "SigLIP does"
    )


def _vision_transformer(visual: Any) -> Tower:
    """Return how open_clip's own vision transformer is read, which differs from transformers' CLIP only in names."""
    last, width = visual.transformer.resblocks[-1], visual.conv1.out_channels

    def last_input(pixels: torch.Tensor) -> torch.Tensor:
        patches = visual.conv1(pixels)
        embeddings = visual.positional_embedding
        if tuple(patches.shape[2:]) != tuple(visual.grid_size):
            maps = embeddings[1:].T.unflatten(1, visual.grid_size)[None]
            maps = F.interpolate(maps, tuple(patches.shape[2:]), mode="bicubic", antialias=True)
            embeddings = torch.cat([embeddings[:1], maps[0].flatten(1).T])
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([visual.class_embedding.expand(len(tokens), 1, -1), tokens], dim=1) + embeddings
        tokens = visual.ln_pre(tokens)
        for block in visual.transformer.resblocks[:-1]:
            tokens = block(tokens)
        return tokens

    def values_of(states: torch.Tensor) -> torch.Tensor:
        return F.linear(last.ln_1(states), last.attn.in_proj_weight[2 * width :], last.attn.in_proj_bias[2 * width :])

    def dense(pixels: torch.Tensor) -> torch.Tensor:
        states = last_input(pixels)[:, 1:]
        tokens = states + last.ls_1(last.attn.out_proj(values_of(states)))
        tokens = tokens + last.ls_2(last.mlp(last.ln_2(tokens)))
        return visual.ln_post(tokens) @ visual.proj

    return Tower(
        patch=visual.patch_size[0],
        dense=dense,
        values=lambda pixels: values_of(last_input(pixels)[:, 1:]),
        project=lambda values: visual.ln_post(last.attn.out_proj(values)) @ visual.proj,
    )


def _resnet(visual: Any) -> Tower:
    """Return how CLIP's ResNet is read, which ends in attention pooling (MaskCLIP, section 3.2)."""
    pool = visual.attnpool

    def values(pixels: torch.Tensor) -> torch.Tensor:
        maps = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))
        return pool.v_proj(maps.flatten(2).transpose(1, 2))

    return Tower(patch=32, dense=lambda pixels: pool.c_proj(values(pixels)), values=values, project=pool.c_proj)


class _OwnValue(torch.nn.Module):
    """Replaces the attention of the last block of a model of timm: each position keeps its own value."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention
        self.values = torch.empty(0)

    def forward(self, tokens: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Return the projected values of tokens, [B, N, W], and keep the values."""
        attention = self.attention
        if getattr(attention, "qkv", None) is None:
            self.values = attention.v_proj(tokens)
        else:
            # Eva keeps the biases of queries and values apart.
            bias, together = getattr(attention, "v_bias", None), attention.qkv.bias
            bias = together.chunk(3)[2] if together is not None else bias
            self.values = F.linear(tokens, attention.qkv.weight.chunk(3)[2], bias)
        return self.project(self.values)

    def project(self, values: torch.Tensor) -> torch.Tensor:
        """Apply what follows the mixing of values."""
        return self.attention.proj(self.attention.norm(values))


def _timm_transformer(folder: Path, visual: Any) -> Tower:
    """Return how a vision transformer of timm is read, with attention pooling as in SigLIP or a class token."""
    trunk = visual.trunk
    prefix, patch = trunk.num_prefix_tokens, trunk.patch_embed.feat_ratio()
    _accept_any_size(folder, trunk)
    own = None
    if getattr(trunk, "attn_pool", None) is None and trunk.global_pool == "token":
        own = trunk.blocks[-1].attn = _OwnValue(trunk.blocks[-1].attn)

    def tokens_of(pixels: torch.Tensor) -> torch.Tensor:
        if getattr(trunk, "rope", None) is not None:  # Eva's positions within attention
            trunk.rope.update_feat_shape(tuple(side // patch for side in pixels.shape[2:]))
        return trunk.forward_features(pixels)[:, prefix:]

    def pool_each(tokens: torch.Tensor) -> torch.Tensor:
        """Apply the head to each token by itself, as if all tokens of an image, and its class token, were that one."""
        repeated = tokens.flatten(0, 1)[:, None].expand(-1, prefix + 1, -1)
        return visual.head(trunk.forward_head(repeated)).unflatten(0, tokens.shape[:2])

    def values(pixels: torch.Tensor) -> torch.Tensor:
        tokens = tokens_of(pixels)
        return tokens if own is None else own.values[:, prefix:]

    def project(values: torch.Tensor) -> torch.Tensor:
        return pool_each(values if own is None else trunk.norm(own.project(values)))

    return Tower(
        patch=trunk.patch_embed.feat_ratio(),
        dense=lambda pixels: pool_each(tokens_of(pixels)),
        values=values,
        project=project,
    )


def _accept_any_size(folder: Path, trunk: Any) -> None:
    """Make a vision transformer of timm interpolate its positional embeddings, as with dynamic_img_size=True."""
    from timm.layers import Format

    if not hasattr(trunk, "dynamic_img_size"):
        raise CheckpointError(f"{folder}: its image encoder, a {type(trunk).__name__} of timm, reads one size only")
    trunk.dynamic_img_size = True
    trunk.patch_embed.strict_img_size = False
    trunk.patch_embed.flatten, trunk.patch_embed.output_fmt = False, Format.NHWC


def _timm_convolutional(visual: Any) -> Tower:
    """Return how a convolutional model of timm is read, such as MobileCLIP's: the mixing is a mean."""
    trunk = visual.trunk

    def features(pixels: torch.Tensor) -> torch.Tensor:
        return trunk.forward_features(pixels).flatten(2).transpose(1, 2)

    def pool_each(values: torch.Tensor) -> torch.Tensor:
        pooled = visual.head(trunk.forward_head(values.flatten(0, 1)[:, :, None, None]))
        return pooled.unflatten(0, values.shape[:2])

    return Tower(
        patch=trunk.feature_info[-1]["reduction"],
        dense=lambda pixels: pool_each(features(pixels)),
        values=features,
        project=pool_each,
    )
