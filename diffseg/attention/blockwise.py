"""Attention block by block in plain torch, for every device: each probability is computed once and used twice.

The plain form keeps [heads, P, P] of every layer. Here the probabilities of some heads and queries are held in one
small workspace. They yield both the layer's output and their share of the sum of maps.

Axes: B images in the batch, H heads, P token positions, K keys, L tokens of the prompt, Q queries of a block, D
channels.
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
        memory = self._memory(queries_BHPD, keys_BHPD)
        return _attend(queries_BHPD, keys_BHPD, values_BHPD, scale, total_BPP, memory)

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

    def record(
        self, queries_BHPD: torch.Tensor, keys_BHKD: torch.Tensor, scale: float, total_BPK: torch.Tensor
    ) -> None:
        """Record attention to keys without values, see `AttentionBackend`; a vocabulary may have thousands of keys."""
        if torch.compiler.is_compiling():
            torch.ops.diffseg.record_in_blocks(queries_BHPD, keys_BHKD, scale, total_BPK)
        else:
            _attend(queries_BHPD, keys_BHKD, None, scale, total_BPK, self._memory(queries_BHPD, keys_BHKD))

    def _memory(self, queries_BHPD: torch.Tensor, keys_BHKD: torch.Tensor) -> torch.Tensor:
        """Return the workspace, which has at least the elements of a block."""
        size = _elements(queries_BHPD, keys_BHKD)
        # All layers share the memory: fresh arrays of this size would cost more in page faults than the arithmetic.
        if self._workspace is None or len(self._workspace) < size or self._workspace.device != queries_BHPD.device:
            self._workspace = torch.empty(size, dtype=torch.float32, device=queries_BHPD.device)
        return self._workspace


def _attend(
    queries_BHPD: torch.Tensor,
    keys_BHKD: torch.Tensor,
    values_BHKD: torch.Tensor | None,
    scale: float,
    total_BPK: torch.Tensor,
    memory: torch.Tensor,
) -> torch.Tensor | None:
    """Record a layer, with the probabilities of a block in `memory`."""
    queries_BHPD, keys_BHKD = queries_BHPD.float(), keys_BHKD.float()
    values_BHKD = None if values_BHKD is None else values_BHKD.float()
    outputs = None if values_BHKD is None else torch.empty_like(queries_BHPD)
    batch, heads, positions, _ = queries_BHPD.shape
    tokens = keys_BHKD.shape[2]
    heads_per_block, rows = _block(queries_BHPD, keys_BHKD)
    workspace = memory[: heads_per_block * rows * tokens].view(heads_per_block, rows, tokens)
    blocks = itertools.product(range(batch), range(0, positions, rows), range(0, heads, heads_per_block))
    for image, row, head in blocks:
        block = (image, slice(head, head + heads_per_block), slice(row, row + rows))
        queries_HQD, keys_HDK = queries_BHPD[block], keys_BHKD[block[:2]].transpose(1, 2)
        probabilities_HQK = workspace[: queries_HQD.shape[0], : queries_HQD.shape[1]]
        torch.baddbmm(probabilities_HQK, queries_HQD, keys_HDK, beta=0, alpha=scale, out=probabilities_HQK)
        torch.softmax(probabilities_HQK, dim=-1, out=probabilities_HQK)
        for probabilities_QK in probabilities_HQK:
            total_BPK[image, row : row + rows].add_(probabilities_QK, alpha=1 / heads)
        if outputs is not None and values_BHKD is not None:
            torch.bmm(probabilities_HQK, values_BHKD[block[:2]], out=outputs[block])
    return outputs


def _block(queries_BHPD: torch.Tensor, keys_BHKD: torch.Tensor) -> tuple[int, int]:
    """Return how many heads, and how many queries of each, make a block."""
    _, heads, positions, _ = queries_BHPD.shape
    tokens = keys_BHKD.shape[2]
    elements = WORKSPACE_ELEMENTS if queries_BHPD.device.type == "cpu" else DEVICE_WORKSPACE_ELEMENTS
    rows = min(positions, max(1, elements // tokens))
    return min(heads, max(1, elements // (rows * tokens))), rows


def _elements(queries_BHPD: torch.Tensor, keys_BHKD: torch.Tensor) -> int:
    """Return the number of probabilities in a block."""
    heads_per_block, rows = _block(queries_BHPD, keys_BHKD)
    return heads_per_block * rows * keys_BHKD.shape[2]


@torch.library.custom_op("diffseg::attend_in_blocks", mutates_args={"total"})
def _attend_in_blocks(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, total: torch.Tensor
) -> torch.Tensor:
    """Record a self-attention layer as a single operator, which a compiled graph calls without looking inside."""
    memory = torch.empty(_elements(queries, keys), dtype=torch.float32, device=queries.device)
    outputs = _attend(queries, keys, values, scale, total, memory)
    assert outputs is not None
    return outputs


@_attend_in_blocks.register_fake
def _(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, total: torch.Tensor
) -> torch.Tensor:
    return torch.empty_like(queries, dtype=torch.float32)


@torch.library.custom_op("diffseg::record_in_blocks", mutates_args={"total"})
def _record_in_blocks(queries: torch.Tensor, keys: torch.Tensor, scale: float, total: torch.Tensor) -> None:
    """Record attention to keys without values as a single operator, as `attend_in_blocks` does."""
    memory = torch.empty(_elements(queries, keys), dtype=torch.float32, device=queries.device)
    _attend(queries, keys, None, scale, total, memory)


@_record_in_blocks.register_fake
def _(queries: torch.Tensor, keys: torch.Tensor, scale: float, total: torch.Tensor) -> None:
    return None
