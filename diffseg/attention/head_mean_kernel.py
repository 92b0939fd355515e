"""A Triton kernel that adds the mean over heads of exp(scale · q kᵀ − L) to a sum, without [heads, P, K] in memory.

L = ln Σ exp(scale · q kᵀ), over the keys, is the log-sum-exp of each query and head that fused attention computes. It
yields the probabilities of one tile without the other tiles, so that a program can add up all heads of its tile in
registers, and reads and writes the sum only once.

This module needs Triton. It runs on NVIDIA GPUs, and for tests on a CPU in Triton's interpreter.

Axes: B images in the batch, H heads, P queries, K keys, D channels of a head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TILE_QUERIES, TILE_KEYS, WARPS = 128, 64, 4
"""The fastest tile of six that were measured on one H200, for 64² tokens and 8 heads of 40 channels in bfloat16."""

CHUNK_BYTES = 128
"""Most bytes of a query that a program loads at once, which bounds its shared memory: 64 channels in half precision."""


@triton.jit
def _add_head_mean(
    queries, keys, lse, total, rows, columns, scale,
    q_image, q_head, q_row, k_image, k_head, k_row, lse_image, lse_head, lse_row, total_image, total_row,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add one tile of one image. The arguments after `scale` are strides in elements, and then constants.

    The numbers of heads and channels are constants, so that the compiler knows how long the loops are.
    """
    image = tl.program_id(2).to(tl.int64)  # the sums of a batch can have more than 2^31 elements
    row = tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    column = tl.program_id(0) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    in_rows, in_columns = row < rows, column < columns
    mean = tl.full((TILE_ROWS, TILE_COLUMNS), 0.0, tl.float32)
    for head in range(HEADS):
        products = tl.full((TILE_ROWS, TILE_COLUMNS), 0.0, tl.float32)
        for start in range(0, CHANNELS, CHUNK):
            # Widths that are not a power of two, such as 40, 80 and 160, are padded with zeros.
            channel = start + tl.arange(0, CHUNK)
            in_channels = channel < CHANNELS
            query = tl.load(
                queries + image * q_image + head * q_head + row[:, None] * q_row + channel[None, :],
                mask=in_rows[:, None] & in_channels[None, :],
                other=0.0,
            )
            key = tl.load(
                keys + image * k_image + head * k_head + column[None, :] * k_row + channel[:, None],
                mask=in_columns[None, :] & in_channels[:, None],
                other=0.0,
            )
            products = tl.dot(query, key, products, input_precision="ieee")
        log_sum = tl.load(lse + image * lse_image + head * lse_head + row * lse_row, mask=in_rows, other=0.0)
        # exp(x) = 2^(x · log2 e), and GPUs have an instruction for powers of 2.
        mean += tl.exp2((products * scale - log_sum[:, None]) * 1.4426950408889634)
    in_tile = in_rows[:, None] & in_columns[None, :]
    target = total + image * total_image + row[:, None].to(tl.int64) * total_row + column[None, :]
    tl.store(target, tl.load(target, mask=in_tile, other=0.0) + mean / HEADS, mask=in_tile)


def add_head_mean(
    queries: torch.Tensor, keys: torch.Tensor, lse: torch.Tensor, scale: float, total: torch.Tensor
) -> None:
    """Add the mean over heads of exp(scale · q kᵀ − L) to `total` in place.

    Args:
        queries: [B, H, P, D], of any float dtype.
        keys: [B, H, K, D], of the same dtype.
        lse: float32 [B, H, ≥ P], the log-sum-exp of each query and head in nats.
        scale: Factor of the products of queries and keys.
        total: float32 [B, P, K].
    """
    queries, keys = (x if x.stride(3) == 1 else x.contiguous() for x in (queries, keys))
    batch, heads, rows, channels = queries.shape
    columns = keys.shape[2]
    assert total.stride(2) == 1
    chunk = min(CHUNK_BYTES // queries.element_size(), max(16, triton.next_power_of_2(channels)))
    grid = (triton.cdiv(columns, TILE_KEYS), triton.cdiv(rows, TILE_QUERIES), batch)
    with torch.cuda.device_of(queries):  # Triton launches on the current device
        _add_head_mean[grid](
            *(queries, keys, lse, total, rows, columns, scale),
            *(*queries.stride()[:3], *keys.stride()[:3], *lse.stride(), *total.stride()[:2]),
            HEADS=heads,
            CHANNELS=channels,
            CHUNK=chunk,
            TILE_ROWS=TILE_QUERIES,
            TILE_COLUMNS=TILE_KEYS,
            num_warps=WARPS,
        )
