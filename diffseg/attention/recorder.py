"""Record the self-attention of a diffusers UNet in one pass, while its output stays what it was.

Fused attention returns no probabilities, and the plain form keeps [heads, P, P] of every layer. The processor here
walks over heads and blocks of queries: the probabilities of a block, held in one small workspace, give both the layer's
output and their share of one accumulator a resolution, the mean over heads and layers, which is all that DiffSeg reads
(CVPR 2024, section 3.2).

Axes: B images in the batch, H heads, P token positions of one resolution, D channels of a head.
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
from diffseg.attention.recording import PassComplete, Recording


class _RecordingProcessor:
    """A diffusers attention processor; probabilities are float32 whatever the weights are, safe from overflow."""

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
        def heads_apart(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2).float()

        queries, keys = heads_apart(attn.to_q(hidden_states)), heads_apart(attn.to_k(hidden_states))
        total = self.recording.accumulator(queries)
        last = self.recording.layers_left == 1 and self.recording.stop_early
        values = None if last else heads_apart(attn.to_v(hidden_states))
        outputs = _attend(queries, keys, values, attn.scale, total, self.recording.workspace_for(queries))
        self.recording.layer_done()
        assert outputs is not None
        merged = outputs.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](merged)) / attn.rescale_output_factor


def _attend(
    queries_BHPD: torch.Tensor,
    keys_BHPD: torch.Tensor,
    values_BHPD: torch.Tensor | None,
    scale: float,
    total_BPP: torch.Tensor,
    workspace: torch.Tensor,
) -> torch.Tensor | None:
    """softmax(scale · q kᵀ) v; the head mean of the softmax is added to the total. Without values only the latter."""
    outputs = None if values_BHPD is None else torch.empty_like(queries_BHPD)
    batch, heads, tokens, _ = queries_BHPD.shape
    some, rows, _ = workspace.shape
    for image, row, head in itertools.product(range(batch), range(0, tokens, rows), range(0, heads, some)):
        block = (image, slice(head, head + some), slice(row, row + rows))
        queries_HQD, keys_HDP = queries_BHPD[block], keys_BHPD[block[:2]].transpose(1, 2)
        probabilities = workspace[: queries_HQD.shape[0], : queries_HQD.shape[1]]
        torch.baddbmm(probabilities, queries_HQD, keys_HDP, beta=0, alpha=scale, out=probabilities)
        torch.softmax(probabilities, dim=-1, out=probabilities)
        for of_head in probabilities:
            total_BPP[image, row : row + rows].add_(of_head, alpha=1 / heads)
        if outputs is not None and values_BHPD is not None:
            torch.bmm(probabilities, values_BHPD[block[:2]], out=outputs[block])
    return outputs


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
    return _run(unet, latents, unet_inputs, unet_options, stop_early=True).own


@torch.inference_mode()
def record_attention(
    unet: UNet2DConditionModel, latents: torch.Tensor, *unet_inputs: Any, columns: torch.Tensor, **unet_options: Any
) -> tuple[SelfAttention, CrossAttention]:
    """As `record_self_attention`, and what each position looks at of the prompt.

    columns: int64 [B, C], the tokens of each image's prompt whose maps are kept, on the UNet's device.
    Raises ValueError, also where the UNet reads no text.
    """
    found = _run(unet, latents, unet_inputs, unet_options, stop_early=True, columns=columns)
    assert found.cross is not None
    return found.own, found.cross


@torch.inference_mode()
def record_with_output(
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    *unet_inputs: Any,
    columns: torch.Tensor | None = None,
    **unet_options: Any,
) -> tuple[SelfAttention, torch.Tensor]:
    """As `record_self_attention`, and the UNet's output [B, C, h, w], which recording leaves as it is without.

    columns: as of `record_attention`, whose recorder is at work as well where they are given.
    """
    found = _run(unet, latents, unet_inputs, unet_options, stop_early=False, columns=columns)
    assert found.output is not None
    return found.own, found.output


class _Pass(NamedTuple):
    own: SelfAttention
    cross: CrossAttention | None
    output: torch.Tensor | None


def _run(
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    unet_inputs: tuple,
    unet_options: dict,
    *,
    stop_early: bool,
    columns: torch.Tensor | None = None,
) -> _Pass:
    layers = self_attention_layers(unet)
    text_layers = [] if columns is None else cross_attention_layers(unet)
    multiple = latent_multiple(unet)
    height, width = latents.shape[-2:]
    if not layers:
        raise ValueError(
            "this UNet has no self-attention layers: DiffSeg needs the transformer blocks of Stable Diffusion"
        )
    if columns is not None and not text_layers:
        raise ValueError("this UNet has no cross-attention layers: it reads no text, and so cannot name anything")
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
        with _replaced(processors), _exact_products_of_halves(unet):
            output = unet(latents, *unet_inputs, **unet_options).sample
    except PassComplete:
        pass
    return _Pass(recording.finished(), None if cross is None else cross.finished(), output)


@contextmanager
def _replaced(processors: Mapping[Attention, Any]) -> Iterator[None]:
    """Attention layers with other processors within the block."""
    before = {layer: layer.processor for layer in processors}
    try:
        for layer, processor in processors.items():
            layer.processor = processor
        yield
    finally:
        for layer, processor in before.items():
            layer.processor = processor


@contextmanager
def _exact_products_of_halves(unet: UNet2DConditionModel) -> Iterator[None]:
    """Tensor cores for the float32 products of queries and keys that came out of bfloat16 or float16 weights.

    TF32 keeps 10 bits of a factor, and those have no more (float16 10, bfloat16 7), so that the products are as exact
    as without; sums are float32 either way. Models in float32 are left alone.
    """
    setting = torch.backends.cuda.matmul
    before = setting.allow_tf32
    if unet.dtype in (torch.bfloat16, torch.float16):
        setting.allow_tf32 = True
    try:
        yield
    finally:
        setting.allow_tf32 = before
