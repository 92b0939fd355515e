"""Logarithms and entropies for `diffseg.method.distance` in one Triton kernel, for GPUs.

In torch they take four kernels, each of which reads or writes an array of [B, P, P]; here each value is read once, and
its logarithm is written once. Importing this module needs Triton.

Axes: B images, n rows, P positions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

POSITIONS = 1024
"""Positions that a program reads at a time."""


def logarithms_in_a_kernel(rows: torch.Tensor, floor: float, out: torch.Tensor) -> torch.Tensor:
    """Compute ln max(rows, floor), and return Σ rows · ln max(rows, floor) of each row.

    Args:
        rows: float32 [..., n, P], with at most one axis before the last two; positions are contiguous.
        floor: Smallest value whose logarithm is taken.
        out: Memory for the logarithms, of the same shape.

    Returns:
        float32 [..., n].
    """
    sums = rows.new_empty(rows.shape[:-1])
    batch, logs = rows.view(-1, *rows.shape[-2:]), out.view(-1, *rows.shape[-2:])
    images, count, positions = batch.shape
    with torch.cuda.device_of(rows):  # Triton launches on the current device
        _take_logarithms[count, images](
            batch,
            logs,
            sums,
            positions,
            batch.stride(0),
            batch.stride(1),
            logs.stride(0),
            logs.stride(1),
            floor,
            block=min(POSITIONS, triton.next_power_of_2(positions)),
        )
    return sums


@triton.jit
def _take_logarithms(
    values, logs, sums, positions, values_image, values_row, logs_image, logs_row, floor, block: tl.constexpr
):
    """Process one row, `block` positions at a time; arguments after `positions` are strides in elements."""
    row, image = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    source, target = values + image * values_image + row * values_row, logs + image * logs_image + row * logs_row
    total = tl.full((block,), 0.0, tl.float32)
    for start in range(0, positions, block):
        position = start + tl.arange(0, block)
        inside = position < positions
        value = tl.load(source + position, mask=inside, other=0.0)
        logarithm = tl.log(tl.maximum(value, floor))
        tl.store(target + position, logarithm, mask=inside)
        total += value * logarithm
    tl.store(sums + image * tl.num_programs(0) + row, tl.sum(total, axis=0))
