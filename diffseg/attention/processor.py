"""The attention processor that diffusers calls instead of its own in the layers that are recorded.

Axes: B images in the batch, H heads, P token positions of one resolution, K keys, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, float, torch.Tensor], torch.Tensor | None]
"""A method of an `AttentionBackend`."""


class PassComplete(Exception):
    """Raised when the last needed layer has been recorded, to skip the rest of the UNet."""


class RecordingProcessor:
    """Computes a layer as diffusers' own processor does, and records its attention.

    It counts nothing, and only the sum differs between passes, so that a compiled block is not compiled again.
    """

    def __init__(self, name: str, attend: Attend, total: torch.Tensor, *, is_last: bool) -> None:
        """Prepare one pass.

        Args:
            name: Name of the layer, for messages.
            attend: How the layer is computed and recorded.
            total: float32 [B, P, K], the sum of maps to which this layer's is added.
            is_last: Whether the pass ends once this layer has been recorded.
        """
        self.name = name
        self.attend = attend
        self.total = total
        self.is_last = is_last

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Run the layer.

        Raises:
            PassComplete: It was the last layer that is needed.
            ValueError: The pass has a mask.
        """
        if attention_mask is not None:
            raise ValueError(
                f"attention layer {self.name} has an attention_mask: expected none; masks are not recorded"
            )
        attended = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        queries = split_heads(attn.to_q(hidden_states), attn.heads)
        keys = split_heads(attn.to_k(attended), attn.heads)
        if self.is_last:
            self.attend(queries, keys, None, attn.scale, self.total)
            raise PassComplete
        values = split_heads(attn.to_v(attended), attn.heads)
        outputs = self.attend(queries, keys, values, attn.scale, self.total)
        assert outputs is not None
        merged = outputs.transpose(1, 2).flatten(2).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](merged))


def split_heads(projected: torch.Tensor, heads: int) -> torch.Tensor:
    """Return queries, keys or values [B, P, H·D] as [B, H, P, D]."""
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2)


@contextmanager
def replace_processors(unet: UNet2DConditionModel, processors: Mapping[Attention, Any]) -> Iterator[None]:
    """Give attention layers of a UNet other processors within the block, and restore the previous ones afterwards.

    A UNet in half precision may use TF32 within the block, see `_allow_tf32_for_halves`.
    """
    before = {layer: layer.processor for layer in processors}
    try:
        for layer, processor in processors.items():
            layer.processor = processor
        with _allow_tf32_for_halves(unet):
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
