"""Group proposals greedily, the second half of a merging round (DiffSeg algorithm 1).

Axes: B images, K proposals.
"""

from __future__ import annotations

from typing import Any

import torch

from diffseg.component_settings import Consume
from diffseg.method.kernels import runs_kernels


def greedy_groups(close: torch.Tensor, valid: torch.Tensor, consume: Consume) -> tuple[torch.Tensor, torch.Tensor]:
    """Group proposals in one greedy pass in order: each that is still free starts a group of those close to it.

    Args:
        close: bool [B, K, K], whether the proposal of a column may join the group of the proposal of a row.
        valid: bool [B, K], which proposals are not padding.
        consume: "paper" removes the members of a group from the pass. "google" only prevents them from starting a
            group, so that a later group may average them once more.

    Returns:
        The members of each group, bool [B, K, K], and which rows are groups, bool [B, K].
    """
    if runs_kernels(close.device):
        from diffseg.method.grouping_kernel import greedy_groups_in_a_kernel

        return greedy_groups_in_a_kernel(close, valid, consume)
    groups, starts = close & valid[:, None, :], torch.zeros_like(valid)
    arrays: tuple = (groups, starts, valid.clone())
    if close.device.type == "cpu":
        arrays = tuple(array.numpy() for array in arrays)  # NumPy shares the memory, and its steps cost a fifth
    _consume(*arrays, consume=consume)
    return groups, starts


def _consume(groups: Any, starts: Any, free: Any, *, consume: Consume) -> None:
    """Turn candidates into members row by row, in place; no value is read back, so the host never waits for a device.

    Args:
        groups: bool [B, K, K], the candidates; becomes the members.
        starts: bool [B, K], all False; becomes the rows that are groups.
        free: bool [B, K], the proposals that may still start a group.
        consume: See `greedy_groups`.
    """
    for index in range(groups.shape[1]):
        itself = slice(index, index + 1)
        starts[:, itself] |= free[:, itself]
        members = groups[:, index]
        members &= starts[:, itself]
        if consume == "paper":
            members &= free
        members[:, itself] |= starts[:, itself]
        free &= ~members
