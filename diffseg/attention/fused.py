"""Fused attention for a layer's output, and its log-sum-exp for the maps, on NVIDIA GPUs with Triton.

The fused kernels of torch return the output o = softmax(scale · q kᵀ) v and L = ln Σ exp(scale · q kᵀ) of each query
and head. The probabilities are exp(scale · q kᵀ − L), exactly and without a second softmax; one kernel adds their mean
over heads to the sum. q kᵀ is computed twice, which costs less than moving it through memory once.

Axes: B images in the batch, H heads, P queries, K keys, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from diffseg.attention.head_mean_kernel import add_head_mean

AttentionWithSum = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]
"""Maps queries, keys, values and the scale to the output [B, H, P, D] and the log-sum-exp, float32 [B, H, ≥ P]."""

ALIGNMENT = 8
"""The fused kernels take widths of a head that are multiples of this."""

WIDEST_FLASH = 256
"""Widest head of flash attention."""


class FusedAttention:
    """The backend for NVIDIA GPUs with Triton, see `AttentionBackend`. On a CPU it runs in Triton's interpreter."""

    name = "fused"

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """Choose the operator of torch.

        Args:
            device: Device of the model.
            dtype: Dtype of its weights.
        """
        self.device, self.dtype = device, dtype
        self._attend = _operator(device, dtype)

    def self_attention(
        self,
        queries_BHPD: torch.Tensor,
        keys_BHKD: torch.Tensor,
        values_BHKD: torch.Tensor | None,
        scale: float,
        total_BPK: torch.Tensor,
    ) -> torch.Tensor | None:
        """Record a layer, see `AttentionBackend`."""
        # The operators return L only together with an output.
        values = keys_BHKD if values_BHKD is None else values_BHKD
        outputs, lse = self._attend(queries_BHPD, keys_BHKD, values, scale)
        record = torch.ops.diffseg.add_head_mean if torch.compiler.is_compiling() else add_head_mean
        record(queries_BHPD, keys_BHKD, lse, scale, total_BPK)
        return None if values_BHKD is None else outputs

    cross_attention = self_attention

    def record(
        self, queries_BHPD: torch.Tensor, keys_BHKD: torch.Tensor, scale: float, total_BPK: torch.Tensor
    ) -> None:
        """Record attention to keys without values, see `AttentionBackend`."""
        self.self_attention(queries_BHPD, keys_BHKD, None, scale, total_BPK)

    def check(self, heads: int, width: int) -> None:
        """Record a small layer on the device, which also compiles the kernel.

        Raises:
            RuntimeError: The rows of its map do not sum to 1.
            Exception: A kernel cannot be compiled or started.
        """
        shape = (1, heads, 2 * ALIGNMENT, width)
        queries, keys = (torch.ones(shape, device=self.device, dtype=self.dtype) for _ in range(2))
        total = torch.zeros(1, shape[2], shape[2], device=self.device)
        self.self_attention(queries, keys, None, width**-0.5, total)
        if not torch.allclose(total.sum(dim=-1), torch.ones_like(total[:, 0]), atol=1e-3):
            raise RuntimeError(f"maps of {heads} heads of {width} channels in {self.dtype} do not sum to 1")


def _operator(device: torch.device, dtype: torch.dtype) -> AttentionWithSum:
    """Return the operator of torch that returns the log-sum-exp, for a device and a dtype."""
    if device.type == "cpu":
        return _flash_on_cpu
    return _flash if dtype in (torch.float16, torch.bfloat16) else _efficient


def _flash(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    width = queries.shape[-1]
    if width > WIDEST_FLASH:
        return _efficient(queries, keys, values, scale)
    aligned = _aligned(queries, keys, values)
    result = torch.ops.aten._scaled_dot_product_flash_attention(*aligned, 0.0, False, scale=scale)
    return result[0][..., :width], result[1]


def _efficient(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Use the memory-efficient kernel, which also takes float32 and pads its L to a multiple of 32 queries."""
    aligned = _aligned(queries, keys, values)
    result = torch.ops.aten._scaled_dot_product_efficient_attention(*aligned, None, True, 0.0, False, scale=scale)
    return result[0][..., : queries.shape[-1]], result[1]


def _flash_on_cpu(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    result = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(queries, keys, values, 0.0, False, scale=scale)
    return result[0], result[1]


def _aligned(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return tensors [B, H, P, D] whose D is padded with zeros to a multiple of `ALIGNMENT`."""
    # Without the condition, `pad` would also copy tensors that need no padding.
    return [F.pad(x, (0, -x.shape[-1] % ALIGNMENT)) if x.shape[-1] % ALIGNMENT else x for x in tensors]


@torch.library.custom_op("diffseg::add_head_mean", mutates_args={"total"})
def _add_head_mean(
    queries: torch.Tensor, keys: torch.Tensor, lse: torch.Tensor, scale: float, total: torch.Tensor
) -> None:
    """Record a layer as a single operator, which a compiled graph calls without looking inside."""
    add_head_mean(queries, keys, lse, scale, total)


@_add_head_mean.register_fake
def _(queries: torch.Tensor, keys: torch.Tensor, lse: torch.Tensor, scale: float, total: torch.Tensor) -> None:
    return None
