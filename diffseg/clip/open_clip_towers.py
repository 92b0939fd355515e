"""The image encoders of open_clip: how each is read position by position, and what its last layer mixes.

Axes: B images, N = h·w positions, W features of a token, C channels of a convolutional network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from diffseg.model.layout import CheckpointError


class Tower(NamedTuple):
    """The functions of a `ClipLayout` that read images, and the pixels per side of a position."""

    patch: int
    dense: Callable[[torch.Tensor], torch.Tensor]
    values: Callable[[torch.Tensor], torch.Tensor]
    project: Callable[[torch.Tensor], torch.Tensor]


def tower_of(folder: Path, visual: Any) -> Tower:
    """Return how an image encoder of open_clip is read.

    Args:
        folder: The model, for messages.
        visual: Its image encoder.

    Raises:
        CheckpointError: It is of a kind whose last layer is not known here.
    """
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
        if hasattr(visual.trunk, "feature_info") and getattr(visual.trunk, "output_fmt", "NCHW") == "NCHW":
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
    """Return how a vision transformer of timm is read: with a class token, attention pooling (SigLIP) or a mean."""
    trunk = visual.trunk
    prefix, patch = trunk.num_prefix_tokens, trunk.patch_embed.feat_ratio()
    _accept_any_size(folder, trunk)
    own = trunk.blocks[-1].attn = _OwnValue(trunk.blocks[-1].attn)
    has_class_token = getattr(trunk, "attn_pool", None) is None and trunk.global_pool == "token"

    def tokens_of(pixels: torch.Tensor) -> torch.Tensor:
        if getattr(trunk, "rope", None) is not None:  # Eva's positions within attention
            trunk.rope.update_feat_shape(tuple(side // patch for side in pixels.shape[2:]))
        return trunk.forward_features(pixels)[:, prefix:]

    def pool_each(tokens: torch.Tensor) -> torch.Tensor:
        """Apply the head to each token by itself, as if all tokens of an image, and its class token, were that one."""
        repeated = tokens.flatten(0, 1)[:, None].expand(-1, prefix + 1, -1)
        return visual.head(trunk.forward_head(repeated)).unflatten(0, tokens.shape[:2])

    def values(pixels: torch.Tensor) -> torch.Tensor:
        """Return what makes the vector of the image: the values of the class token's attention, or the tokens."""
        tokens = tokens_of(pixels)
        return own.values[:, prefix:] if has_class_token else tokens

    def project(values: torch.Tensor) -> torch.Tensor:
        return pool_each(trunk.norm(own.project(values)) if has_class_token else values)

    return Tower(patch=patch, dense=lambda pixels: pool_each(tokens_of(pixels)), values=values, project=project)


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
