"""The greedy grouping of `diffseg.method.grouping` as one Triton kernel, for GPUs.

In torch the walk takes about six kernels for each proposal. Importing this module needs Triton.

Axes: B images, K proposals.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from diffseg.component_settings import Consume


def greedy_groups_in_a_kernel(
    close: torch.Tensor, valid: torch.Tensor, consume: Consume
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do the same as `diffseg.method.grouping.greedy_groups`, with one program for each image."""
    images, count = valid.shape
    groups, starts = torch.empty_like(close, memory_format=torch.contiguous_format), torch.empty_like(valid)
    with torch.cuda.device_of(close):  # Triton launches on the current device
        _walk[(images,)](
            close.contiguous().view(torch.uint8),
            valid.contiguous().view(torch.uint8),
            groups.view(torch.uint8),
            starts.view(torch.uint8),
            count=count,
            padded=triton.next_power_of_2(count),
            removes=consume == "paper",
        )
    return groups, starts


@triton.jit
def _walk(close, valid, groups, starts, count: tl.constexpr, padded: tl.constexpr, removes: tl.constexpr):
    """Walk over the proposals of one image in order. The flags of those that are still free stay in registers.

    Args:
        close: uint8 [B, K, K], 0 or 1.
        valid: uint8 [B, K], 0 or 1.
        groups: uint8 [B, K, K], the members of each group.
        starts: uint8 [B, K], 1 for the rows that are groups.
        count: K.
        padded: The smallest power of two that is at least K.
        removes: Whether the members of a group are excluded from later groups.
    """
    image = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, padded)
    inside = columns < count
    is_valid = tl.load(valid + image * count + columns, mask=inside, other=0).to(tl.int32)
    free, started = is_valid, is_valid * 0
    for index in range(count):
        itself = (columns == index).to(tl.int32)
        starts_group = tl.max(free * itself, axis=0)
        row = (image * count + index) * count + columns
        members = tl.load(close + row, mask=inside, other=0).to(tl.int32) * is_valid * starts_group
        if removes:
            members *= free
        members = tl.maximum(members, itself * starts_group)
        tl.store(groups + row, members.to(tl.uint8), mask=inside)
        free *= 1 - members
        started += itself * starts_group
    tl.store(starts + image * count + columns, started.to(tl.uint8), mask=inside)
