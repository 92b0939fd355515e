"""Attention block by block in plain torch, for every device: each probability is computed once and used twice.

The plain form keeps [heads, P, P] of every layer. Here the probabilities of some heads and queries are held in one
small workspace. They yield both the layer's output and their share of the sum of maps.

Axes: B images in the batch, H heads, P token positions, L tokens of the prompt, Q queries of a block, D channels.
"""

from __future__ import annotations

import itertools

import torch

WORKSPACE_ELEMENTS = 2**20
"""Probabilities held at a time on a CPU: 4 MiB of float32 fit its cache and give the products enough rows."""

DEVICE_WORKSPACE_ELEMENTS = 2**26
"""Probabilities held at a time on other devices, 256 MiB: there, launching a kernel costs more than memory."""


class BlockwiseAttention:
    """The backend for CPUs, MPS and GPUs without Triton, see `AttentionBackend`.

    Probabilities are float32 whatever the dtype of the weights, so that they cannot overflow.
    """

    name = "blockwise"

    def __init__(self) -> None:
        self._workspace: torch.Tensor | None = None

    def self_attention(
        self,
        queries_BHPD: torch.Tensor,
        keys_BHPD: torch.Tensor,
        values_BHPD: torch.Tensor | None,
        scale: float,
        total_BPP: torch.Tensor,
    ) -> torch.Tensor | None:
        """Record a self-attention layer, see `AttentionBackend`."""
        if torch.compiler.is_compiling():
            assert values_BHPD is not None
            return torch.ops.diffseg.attend_in_blocks(queries_BHPD, keys_BHPD, values_BHPD, scale, total_BPP)
        size = _elements(queries_BHPD)
        # All layers share the memory: fresh arrays of this size would cost more in page faults than the arithmetic.
        if self._workspace is None or len(self._workspace) < size or self._workspace.device != queries_BHPD.device:
            self._workspace = torch.empty(size, dtype=torch.float32, device=queries_BHPD.device)
        return _attend(queries_BHPD, keys_BHPD, values_BHPD, scale, total_BPP, self._workspace)

    def cross_attention(
        self,
        queries_BHPD: torch.Tensor,
        keys_BHLD: torch.Tensor,
        values_BHLD: torch.Tensor | None,
        scale: float,
        total_BPL: torch.Tensor,
    ) -> torch.Tensor | None:
        """Record a cross-attention layer, see `AttentionBackend`. A prompt is so short that one block suffices."""
        products_BHPL = queries_BHPD.float() @ keys_BHLD.float().transpose(2, 3)
        probabilities_BHPL = torch.softmax(products_BHPL * scale, dim=-1)
        total_BPL.add_(probabilities_BHPL.mean(dim=1))
        return None if values_BHLD is None else probabilities_BHPL @ values_BHLD.float()


def _attend(
    queries_BHPD: torch.Tensor,
    keys_BHPD: torch.Tensor,
    values_BHPD: torch.Tensor | None,
    scale: float,
    total_BPP: torch.Tensor,
    memory: torch.Tensor,
) -> torch.Tensor | None:
    """Record a self-attention layer, with the probabilities of a block in `memory`."""
    queries_BHPD, keys_BHPD = queries_BHPD.float(), keys_BHPD.float()
    values_BHPD = None if values_BHPD is None else values_BHPD.float()
    outputs = None if values_BHPD is None else torch.empty_like(queries_BHPD)
    batch, heads, tokens, _ = queries_BHPD.shape
    heads_per_block, rows = _block(queries_BHPD)
    workspace = memory[: heads_per_block * rows * tokens].view(heads_per_block, rows, tokens)
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


def _block(queries_BHPD: torch.Tensor) -> tuple[int, int]:
    """Return how many heads, and how many queries of each, make a block."""
    _, heads, tokens, _ = queries_BHPD.shape
    elements = WORKSPACE_ELEMENTS if queries_BHPD.device.type == "cpu" else DEVICE_WORKSPACE_ELEMENTS
    rows = min(tokens, max(1, elements // tokens))
    return min(heads, max(1, elements // (rows * tokens))), rows


def _elements(queries_BHPD: torch.Tensor) -> int:
    """Return the number of probabilities in a block."""
    heads_per_block, rows = _block(queries_BHPD)
    return heads_per_block * rows * queries_BHPD.shape[2]


@torch.library.custom_op("diffseg::attend_in_blocks", mutates_args={"total"})
def _attend_in_blocks(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, total: torch.Tensor
) -> torch.Tensor:
    """Record a self-attention layer as a single operator, which a compiled graph calls without looking inside."""
    memory = torch.empty(_elements(queries), dtype=torch.float32, device=queries.device)
    outputs = _attend(queries, keys, values, scale, total, memory)
    assert outputs is not None
    return outputs


@_attend_in_blocks.register_fake
def _(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, total: torch.Tensor
) -> torch.Tensor:
    return torch.empty_like(queries, dtype=torch.float32)
