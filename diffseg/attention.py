"""Record the self-attention of a diffusers UNet in one pass, while its output stays what it was.

Fused attention returns no probabilities, and the plain form keeps [heads, P, P] of every layer. The processor here
walks over the queries in chunks: each chunk's probabilities give both the layer's output and its share of one
accumulator a resolution, the mean over heads and layers, which is all that DiffSeg reads (CVPR 2024, section 3.2).

Axes: B images in the batch, H heads, P token positions of one resolution, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention

Grid = tuple[int, int]
"""Height and width in tokens."""

CHUNK_ELEMENTS = 2**22
"""Probabilities held at a time: 16 MiB of float32."""


@dataclass(frozen=True, kw_only=True)
class SelfAttention:
    """Self-attention of a batch, by resolution.

    maps: {(h, w): float32 [B, h·w, h·w]}, rows sum to 1; the mean over the heads and layers of that resolution.
    layers: {(h, w): how many layers that mean is of}.
    """

    maps: Mapping[Grid, torch.Tensor]
    layers: Mapping[Grid, int]

    def of_image(self, index: int) -> SelfAttention:
        """The maps of one image of the batch, each float32 [h·w, h·w]."""
        return SelfAttention(maps={grid: maps[index] for grid, maps in self.maps.items()}, layers=self.layers)


class _PassComplete(Exception):
    """The last layer that is needed has been recorded; the rest of the UNet has no use."""


@dataclass(kw_only=True)
class _Recording:
    grid_of_tokens: Mapping[int, Grid]
    layers_to_record: int
    stop_early: bool
    sums: dict[Grid, torch.Tensor] = field(default_factory=dict)
    layers: dict[Grid, int] = field(default_factory=dict)

    def accumulator(self, queries_BHPD: torch.Tensor) -> torch.Tensor:
        batch, _, tokens, _ = queries_BHPD.shape
        grid = self.grid_of_tokens[tokens]
        if grid not in self.sums:
            self.sums[grid] = torch.zeros(batch, tokens, tokens, dtype=torch.float32, device=queries_BHPD.device)
        self.layers[grid] = self.layers.get(grid, 0) + 1
        return self.sums[grid]

    def is_last_layer(self) -> bool:
        return sum(self.layers.values()) == self.layers_to_record

    def finished(self) -> SelfAttention:
        maps = {grid: self.sums[grid].div_(count) for grid, count in self.layers.items()}
        return SelfAttention(maps=maps, layers=dict(self.layers))


class _RecordingProcessor:
    """A diffusers attention processor; probabilities are float32 whatever the weights are, safe from overflow."""

    def __init__(self, recording: _Recording) -> None:
        self.recording = recording

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        def heads_apart(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2).float()

        queries = heads_apart(attn.to_q(hidden_states)) * attn.scale
        keys, values = heads_apart(attn.to_k(hidden_states)), heads_apart(attn.to_v(hidden_states))
        total_BPP = self.recording.accumulator(queries)
        last = self.recording.is_last_layer() and self.recording.stop_early
        outputs = None if last else torch.empty_like(queries)
        batch, heads, tokens, _ = queries.shape
        step = max(1, CHUNK_ELEMENTS // (batch * heads * tokens))
        for start in range(0, tokens, step):
            chunk = slice(start, start + step)
            probabilities = torch.softmax(queries[:, :, chunk] @ keys.transpose(-1, -2), dim=-1)
            total_BPP[:, chunk] += probabilities.mean(dim=1)
            if outputs is not None:
                outputs[:, :, chunk] = probabilities @ values
        if outputs is None:
            raise _PassComplete
        merged = outputs.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](merged)) / attn.rescale_output_factor


def self_attention_layers(unet: UNet2DConditionModel) -> list[Attention]:
    """The self-attention modules of every transformer block, in the order of the module tree."""
    return [
        block.attn1
        for block in unet.modules()
        if isinstance(block, BasicTransformerBlock) and not block.attn1.is_cross_attention
    ]


def latent_multiple(unet: UNet2DConditionModel) -> int:
    """Latent sides must be multiples of this, so that every resolution has whole tokens."""
    return 2 ** (len(unet.config.block_out_channels) - 1)


@torch.inference_mode()
def record_self_attention(
    unet: UNet2DConditionModel, latents: torch.Tensor, *unet_inputs: Any, **unet_options: Any
) -> SelfAttention:
    """One pass of the UNet that ends after its last self-attention layer.

    latents: [B, C, h, w], h and w multiples of `latent_multiple(unet)`; the other arguments are the UNet's own.
    Raises ValueError where the UNet has no self-attention or the latents do not divide.
    """
    attention, _ = _run(unet, latents, unet_inputs, unet_options, stop_early=True)
    return attention


@torch.inference_mode()
def record_with_output(
    unet: UNet2DConditionModel, latents: torch.Tensor, *unet_inputs: Any, **unet_options: Any
) -> tuple[SelfAttention, torch.Tensor]:
    """As `record_self_attention`, and the UNet's output [B, C, h, w], which recording leaves as it is without."""
    attention, output = _run(unet, latents, unet_inputs, unet_options, stop_early=False)
    assert output is not None
    return attention, output


def _run(
    unet: UNet2DConditionModel, latents: torch.Tensor, unet_inputs: tuple, unet_options: dict, *, stop_early: bool
) -> tuple[SelfAttention, torch.Tensor | None]:
    layers = self_attention_layers(unet)
    multiple = latent_multiple(unet)
    height, width = latents.shape[-2:]
    if not layers:
        raise ValueError(
            "this UNet has no self-attention layers: DiffSeg needs the transformer blocks of Stable Diffusion"
        )
    if height % multiple or width % multiple:
        raise ValueError(f"latents of {height} x {width}: both sides must be multiples of {multiple}")
    sides = [2**level for level in range(len(unet.config.block_out_channels))]
    recording = _Recording(
        grid_of_tokens={(height // s) * (width // s): (height // s, width // s) for s in sides},
        layers_to_record=len(layers),
        stop_early=stop_early,
    )
    before = [layer.processor for layer in layers]
    output = None
    try:
        for layer in layers:
            layer.processor = _RecordingProcessor(recording)
        output = unet(latents, *unet_inputs, **unet_options).sample
    except _PassComplete:
        pass
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.processor = processor
    return recording.finished(), output
