"""Record the self-attention of a diffusers UNet in one pass, and leave the UNet's output unchanged.

Fused attention returns no probabilities, and the plain form keeps [heads, P, P] of every layer. The processor here
iterates over heads and blocks of queries. The probabilities of a block are held in one small workspace. They yield both
the layer's output and their share of one sum per resolution, the mean over heads and layers, which is all that DiffSeg
reads (CVPR 2024, section 3.2).

Axes: B images in the batch, H heads, P token positions of one resolution, Q queries of a block, D channels of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention

from diffseg.attention.cross_recorder import CrossRecorder, cross_attention_layers
from diffseg.attention.maps import CrossAttention, SelfAttention
from diffseg.attention.recording import PassComplete, Recording, project_output, split_heads


class _RecordingProcessor:
    """A diffusers attention processor that records self-attention.

    Probabilities are float32 whatever the dtype of the weights, so that they cannot overflow.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        queries = split_heads(attn.to_q(hidden_states), attn.heads)
        keys = split_heads(attn.to_k(hidden_states), attn.heads)
        total = self.recording.begin_layer(queries)
        is_last = self.recording.layers_left == 1 and self.recording.stop_early
        values = None if is_last else split_heads(attn.to_v(hidden_states), attn.heads)
        outputs = _attend(queries, keys, values, attn.scale, total, self.recording.workspace_for(queries))
        self.recording.end_layer()
        assert outputs is not None
        return project_output(attn, outputs, hidden_states.dtype)


def _attend(
    queries_BHPD: torch.Tensor,
    keys_BHPD: torch.Tensor,
    values_BHPD: torch.Tensor | None,
    scale: float,
    total_BPP: torch.Tensor,
    workspace: torch.Tensor,
) -> torch.Tensor | None:
    """Add the mean over heads of softmax(scale · q kᵀ) to `total_BPP`; return its product with v, if v is given."""
    outputs = None if values_BHPD is None else torch.empty_like(queries_BHPD)
    batch, heads, tokens, _ = queries_BHPD.shape
    heads_per_block, rows, _ = workspace.shape
    blocks = itertools.product(range(batch), range(0, tokens, rows), range(0, heads, heads_per_block))
    for image, row, head in blocks:
        block = (image, slice(head, head + heads_per_block), slice(row, row + rows))
        queries_HQD, keys_HDP = queries_BHPD[block], keys_BHPD[block[:2]].transpose(1, 2)
        probabilities_HQP = workspace[: queries_HQD.shape[0], : queries_HQD.shape[1]]
        torch.baddbmm(probabilities_HQP, queries_HQD, keys_HDP, beta=0, alpha=scale, out=probabilities_HQP)
        torch.softmax(probabilities_HQP, dim=-1, out=probabilities_HQP)
        for probabilities_QP in probabilities_HQP:
            total_BPP[image, row : row + rows].add_(probabilities_QP, alpha=1 / heads)
        if outputs is not None and values_BHPD is not None:
            torch.bmm(probabilities_HQP, values_BHPD[block[:2]], out=outputs[block])
    return outputs


def self_attention_layers(unet: UNet2DConditionModel) -> list[Attention]:
    """Return the self-attention modules of every transformer block, in the order of the module tree."""
    return [
        block.attn1
        for block in unet.modules()
        if isinstance(block, BasicTransformerBlock) and not block.attn1.is_cross_attention
    ]


def latent_multiple(unet: UNet2DConditionModel) -> int:
    """Return the divisor that both sides of the latents need, so that every resolution has whole tokens."""
    return 2 ** (len(unet.config.block_out_channels) - 1)


@torch.inference_mode()
def record_self_attention(
    unet: UNet2DConditionModel, latents: torch.Tensor, *unet_inputs: Any, **unet_options: Any
) -> SelfAttention:
    """Run one pass of the UNet up to its last self-attention layer, and return the maps.

    Args:
        unet: A UNet of Stable Diffusion.
        latents: [B, C, h, w], with h and w multiples of `latent_multiple(unet)`.
        unet_inputs: Further positional arguments of the UNet.
        unet_options: Keyword arguments of the UNet.

    Raises:
        ValueError: The UNet has no self-attention, or a side of the latents is not such a multiple.
    """
    return _run(unet, latents, unet_inputs, unet_options, stop_early=True).self_attention


@torch.inference_mode()
def record_attention(
    unet: UNet2DConditionModel, latents: torch.Tensor, *unet_inputs: Any, columns: torch.Tensor, **unet_options: Any
) -> tuple[SelfAttention, CrossAttention]:
    """Run one pass as `record_self_attention` does, and record cross-attention to chosen prompt tokens as well.

    The other arguments are those of `record_self_attention`.

    Args:
        columns: int64 [B, C] on the UNet's device, positions in each image's prompt of the tokens to record.

    Raises:
        ValueError: As for `record_self_attention`, or the UNet reads no text.
    """
    recorded = _run(unet, latents, unet_inputs, unet_options, stop_early=True, columns=columns)
    assert recorded.cross_attention is not None
    return recorded.self_attention, recorded.cross_attention


@torch.inference_mode()
def record_with_output(
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    *unet_inputs: Any,
    columns: torch.Tensor | None = None,
    **unet_options: Any,
) -> tuple[SelfAttention, torch.Tensor]:
    """Run a whole pass, and return self-attention and the UNet's output [B, C, h, w], which recording does not change.

    The arguments are those of `record_attention`. If `columns` is given, cross-attention is recorded as well.
    """
    recorded = _run(unet, latents, unet_inputs, unet_options, stop_early=False, columns=columns)
    assert recorded.output is not None
    return recorded.self_attention, recorded.output


class _Recorded(NamedTuple):
    """What one pass returned."""

    self_attention: SelfAttention
    cross_attention: CrossAttention | None
    output: torch.Tensor | None


def _run(
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    unet_inputs: tuple,
    unet_options: dict,
    *,
    stop_early: bool,
    columns: torch.Tensor | None = None,
) -> _Recorded:
    layers = self_attention_layers(unet)
    text_layers = [] if columns is None else cross_attention_layers(unet)
    if not layers:
        raise ValueError(
            "this UNet has no self-attention layers: DiffSeg needs the transformer blocks of Stable Diffusion"
        )
    if columns is not None and not text_layers:
        raise ValueError("this UNet has no cross-attention layers: it reads no text, and so cannot name anything")
    multiple = latent_multiple(unet)
    height, width = latents.shape[-2:]
    if height % multiple or width % multiple:
        raise ValueError(f"latents of {height} x {width}: both sides must be multiples of {multiple}")
    sides = [2**level for level in range(len(unet.config.block_out_channels))]
    recording = Recording(
        grid_of_tokens={(height // s) * (width // s): (height // s, width // s) for s in sides},
        layers_left=len(layers) + len(text_layers),
        stop_early=stop_early,
    )
    cross = None if columns is None else CrossRecorder(columns, recording)
    processors = dict.fromkeys(layers, _RecordingProcessor(recording)) | dict.fromkeys(text_layers, cross)
    output = None
    try:
        with _replace_processors(processors), _allow_tf32_for_halves(unet):
            output = unet(latents, *unet_inputs, **unet_options).sample
    except PassComplete:
        pass
    return _Recorded(recording.mean_maps(), None if cross is None else cross.mean_maps(), output)


@contextmanager
def _replace_processors(processors: Mapping[Attention, Any]) -> Iterator[None]:
    """Give attention layers other processors within the block, and restore their own afterwards."""
    before = {layer: layer.processor for layer in processors}
    try:
        for layer, processor in processors.items():
            layer.processor = processor
        yield
    finally:
        for layer, processor in before.items():
            layer.processor = processor


@contextmanager
def _allow_tf32_for_halves(unet: UNet2DConditionModel) -> Iterator[None]:
    """Let tensor cores compute the float32 products of queries and keys that came out of bfloat16 or float16 weights.

    TF32 keeps 10 bits of each factor, and these factors have no more (float16 has 10, bfloat16 has 7), so the products
    are as exact as without it; sums are float32 either way. Models in float32 keep the setting as it is.
    """
    setting = torch.backends.cuda.matmul
    before = setting.allow_tf32
    if unet.dtype in (torch.bfloat16, torch.float16):
        setting.allow_tf32 = True
    try:
        yield
    finally:
        setting.allow_tf32 = before
