"""The attention layers that are recorded: where they are in a UNet, and what the recorder does not compute in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention

NOT_COMPUTED: dict[str, object] = {
    "group_norm": None,
    "spatial_norm": None,
    "norm_q": None,
    "norm_k": None,
    "norm_cross": None,
    "add_q_proj": None,
    "add_k_proj": None,
    "add_v_proj": None,
    "residual_connection": False,
    "rescale_output_factor": 1.0,
    "is_causal": False,
    "pre_only": False,
}
"""Attributes of diffusers' attention layers that change what a layer computes, with the only value that is recorded."""


class TransformerBlock(NamedTuple):
    """A transformer block of a UNet.

    Attributes:
        name: Its name among the modules of the UNet.
        module: The block.
        level: How often its input has been halved: it has 1 / 2^level of the latents' rows and columns.
    """

    name: str
    module: BasicTransformerBlock
    level: int


class AttentionLayer(NamedTuple):
    """An attention layer that can be recorded.

    Attributes:
        name: Its name among the modules of the UNet.
        module: The layer.
        level: The level of its block.
    """

    name: str
    module: Attention
    level: int


def transformer_blocks(unet: UNet2DConditionModel) -> list[TransformerBlock]:
    """Return the transformer blocks of a UNet in the order in which a pass runs them."""
    parts: list[tuple[str, Any, int]] = []
    parts += [(f"down_blocks.{level}", part, level) for level, part in enumerate(unet.down_blocks)]
    deepest = len(parts) - 1
    if unet.mid_block is not None:
        parts.append(("mid_block", unet.mid_block, deepest))
    parts += [(f"up_blocks.{index}", part, deepest - index) for index, part in enumerate(unet.up_blocks)]
    return [
        TransformerBlock(f"{prefix}.{name}", module, level)
        for prefix, part, level in parts
        for name, module in part.named_modules()
        if isinstance(module, BasicTransformerBlock)
    ]


def attention_layers(unet: UNet2DConditionModel) -> list[AttentionLayer]:
    """Return the self- and cross-attention layers of all transformer blocks, in the order in which a pass runs them."""
    layers = []
    for name, block, level in transformer_blocks(unet):
        if not block.attn1.is_cross_attention:
            layers.append(AttentionLayer(f"{name}.attn1", block.attn1, level))
        if block.attn2 is not None and block.attn2.is_cross_attention:
            layers.append(AttentionLayer(f"{name}.attn2", block.attn2, level))
    return layers


def self_attention_layers(unet: UNet2DConditionModel) -> list[Attention]:
    """Return the self-attention layers of all transformer blocks, in the order in which a pass runs them."""
    return [layer.module for layer in attention_layers(unet) if not layer.module.is_cross_attention]


def check_layer(layer: AttentionLayer) -> None:
    """Check that the recorder computes everything that a layer does.

    Raises:
        ValueError: The layer normalises, adds or rescales something that the recorder does not.
    """
    for attribute, found in _unsupported(layer.module):
        expected = NOT_COMPUTED.get(attribute, layer.module.heads)
        raise ValueError(
            f"attention layer {layer.name} has {attribute}={found}: expected {expected}, because the recorder computes "
            "softmax(scale · q kᵀ) v and the projections alone, as Stable Diffusion 1.x, 2.x and XL need"
        )


def _unsupported(layer: Attention) -> Iterator[tuple[str, object]]:
    """Yield the attributes of a layer that the recorder does not compute, with their values."""
    for attribute, expected in NOT_COMPUTED.items():
        value = getattr(layer, attribute, expected)
        if value is not expected and value != expected:
            yield attribute, value if isinstance(value, (bool, int, float)) else type(value).__name__
    if layer.inner_kv_dim != layer.inner_dim:
        yield "kv_heads", layer.heads * layer.inner_kv_dim // layer.inner_dim
