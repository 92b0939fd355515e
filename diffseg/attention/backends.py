"""The two ways in which a layer's attention is computed and recorded, and the choice between them.

Axes: B images in the batch, H heads, P queries (the token positions of one resolution), K keys (the same positions in
self-attention, the tokens of the prompt in cross-attention), D channels of a head.
"""

from __future__ import annotations

import logging
from typing import Protocol

import torch
from diffusers import UNet2DConditionModel

from diffseg.attention.blockwise import BlockwiseAttention
from diffseg.attention.layers import transformer_blocks
from diffseg.devices import supports_triton

FIRST_CAPABILITY = (8, 0)
"""First compute capability of the fused backend, that of the A100: earlier GPUs have no flash attention."""

log = logging.getLogger(__name__)


class AttentionBackend(Protocol):
    """Computes softmax(scale · q kᵀ) v of a layer, and adds the mean over heads of the softmax to a sum."""

    name: str
    """The name under which run.json records the backend."""

    def self_attention(
        self,
        queries_BHPD: torch.Tensor,
        keys_BHKD: torch.Tensor,
        values_BHKD: torch.Tensor | None,
        scale: float,
        total_BPK: torch.Tensor,
    ) -> torch.Tensor | None:
        """Record a self-attention layer.

        Args:
            queries_BHPD: Queries in the dtype of the weights.
            keys_BHKD: Keys.
            values_BHKD: Values; None if only the maps are needed.
            scale: Factor of the products of queries and keys.
            total_BPK: float32, the sum to which the mean over heads is added in place.

        Returns:
            The layer's output [B, H, P, D] before its projection; None if there are no values.
        """

    def cross_attention(
        self,
        queries_BHPD: torch.Tensor,
        keys_BHKD: torch.Tensor,
        values_BHKD: torch.Tensor | None,
        scale: float,
        total_BPK: torch.Tensor,
    ) -> torch.Tensor | None:
        """Record a cross-attention layer, see `self_attention`."""

    def record(
        self, queries_BHPD: torch.Tensor, keys_BHKD: torch.Tensor, scale: float, total_BPK: torch.Tensor
    ) -> None:
        """Record the attention to keys that have no values, such as those of a second context."""


def choose_backend(unet: UNet2DConditionModel) -> AttentionBackend:
    """Return the fastest backend that works for a UNet on its device.

    On an NVIDIA GPU from `FIRST_CAPABILITY` on, with Triton, that is the fused one. A small layer of each width of the
    model is tried first, because Triton also needs a C compiler. In all other cases it is the blockwise one.
    """
    device = unet.device
    if not supports_triton(device) or torch.cuda.get_device_capability(device) < FIRST_CAPABILITY:
        return BlockwiseAttention()
    from diffseg.attention.fused import FusedAttention

    layers = [block.module.attn1 for block in transformer_blocks(unet)]
    try:
        fused = FusedAttention(device, unet.dtype)
        for heads, width in sorted({(layer.heads, layer.inner_dim // layer.heads) for layer in layers}):
            fused.check(heads, width)
    except Exception as error:  # what fails here is a compiler, a driver or a kernel, with errors of any class
        log.warning(
            "attention is recorded block by block, which takes longer, because the fused kernels do not work here: %s",
            error,
        )
        return BlockwiseAttention()
    return fused
