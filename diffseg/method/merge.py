"""Anchors, iterative merging and k-means: attention rows into proposals (DiffSeg section 3.3, algorithm 1).

Axes: B images, P = h·w positions, M anchors, K proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from diffseg.attention.maps import Grid
from diffseg.component_settings import AnchorLayout, Consume
from diffseg.devices import to_device
from diffseg.method.distance import Metric, symmetric_kl

BLOCK_ROWS = 256
KMEANS_ITERATIONS = 300
KMEANS_TOLERANCE = 1e-4  # of the mean variance of a column, as in scikit-learn


def anchor_axis(tokens: int, count: int, layout: AnchorLayout) -> np.ndarray:
    """int64 positions of `count` anchors along an axis of `tokens`; fewer where the axis is shorter than that.

    even: from the first to the last token in equal steps, rounded. google: a whole step of (tokens − 1) // (count − 1),
    centred, which is 1, 5, …, 61 for 16 of 64 but leaves the borders out where it does not divide (33 of 64: 15 … 47).
    """
    count = min(count, tokens)
    if count == 1:
        return np.array([tokens // 2])
    if layout == "even":
        return np.rint(np.linspace(0, tokens - 1, count)).astype(np.int64)
    step = (tokens - 1) // (count - 1)
    start = (tokens - 1 - step * (count - 1)) // 2
    return start + step * np.arange(count)


def anchor_positions(grid: Grid, per_side: int, layout: AnchorLayout = "even") -> np.ndarray:
    """int64 [M] row-major positions of an anchor grid with `per_side` anchors on each side."""
    rows, columns = (anchor_axis(side, per_side, layout) for side in grid)
    return (rows[:, None] * grid[1] + columns[None, :]).ravel()


def greedy_groups(close: torch.Tensor, alive: torch.Tensor, consume: Consume) -> tuple[torch.Tensor, torch.Tensor]:
    """Members of each group, bool [B, K, K], and which rows are groups, bool [B, K], of a greedy pass in order.

    close: bool [B, K, K]. alive: bool [B, K], which proposals there are.
    paper: what a group took is gone. google: it starts no group any more, but a later group may average it once more.
    """
    groups, starts = close & alive[:, None, :], torch.zeros_like(alive)
    arrays: tuple = (groups, starts, alive.clone())
    if close.device.type == "cpu":
        arrays = tuple(array.numpy() for array in arrays)  # the same memory, and steps that cost a fifth
    _walk(*arrays, consume=consume)
    return groups, starts


def _walk(groups: Any, starts: Any, free: Any, *, consume: Consume) -> None:
    """Turn candidates into members, row by row, in place. No value is asked for, so that a device is not waited for."""
    for index in range(groups.shape[1]):
        here = slice(index, index + 1)
        starts[:, here] |= free[:, here]
        members = groups[:, index]
        members &= starts[:, here]
        if consume == "paper":
            members &= free
        members[:, here] |= starts[:, here]
        free &= ~members


def group_means(members: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """float32 [B, K, P]: the mean of each group's rows, bool [B, K, n] of [B, n, P]; zeros for an empty group."""
    weights = members.to(rows.dtype)
    weights /= weights.sum(dim=-1, keepdim=True).clamp_min(1)
    if not _may_ask(rows):
        return weights @ rows
    # Groups lie together in the image, so that most of them have no member in a block of rows.
    means = torch.zeros(*weights.shape[:2], rows.shape[-1])
    for start in range(0, rows.shape[1], BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        there = members[0, :, block].any(dim=1).nonzero()[:, 0]
        means[0].index_add_(0, there, weights[0, there, block] @ rows[0, block])
    return means


def _may_ask(rows: torch.Tensor) -> bool:
    """Whether values may decide what is computed: a device would have to be waited for, and images differ in them."""
    return len(rows) == 1 and rows.device.type == "cpu"


def anchor_distances(attention: torch.Tensor, anchors: np.ndarray, metric: Metric) -> torch.Tensor:
    """float32 [B, M, P]: from each anchor's row to all rows of aggregated attention [B, P, P]."""
    return metric(attention[:, to_device(torch.from_numpy(anchors), attention.device)], attention)


def merge(
    attention: torch.Tensor,
    *,
    anchors: np.ndarray,
    tau: Sequence[float],
    consume: Consume = "paper",
    metric: Metric = symmetric_kl,
    near: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Proposals float32 [B, K, P], and which of them there are, bool [B, K], of aggregated attention [B, P, P].

    Round 1 averages, for each anchor, all rows nearer than tau[0] to its own; each following round merges proposals
    nearer than tau[i] greedily in order. tau is in units of the metric; a row always belongs to its own anchor.
    near: those distances of the first round, [B, M, P], where they are known (`anchor_distances`).
    A proposal that there is not is zero. K is M where a device would have to be waited for to tell how many are left,
    or where images differ in it; on a CPU one image has as many as are left.
    """
    positions = to_device(torch.from_numpy(anchors), attention.device)
    members = (anchor_distances(attention, anchors, metric) if near is None else near) < tau[0]
    members[:, torch.arange(len(positions), device=members.device), positions] = True
    proposals = group_means(members, attention)
    alive = torch.ones_like(proposals[..., 0], dtype=torch.bool)
    for threshold in tau[1:]:
        close = metric(proposals, proposals) < threshold
        groups, alive = greedy_groups(close, alive, consume)
        proposals = group_means(groups, proposals)
        if _may_ask(attention):
            proposals, alive = proposals[:, alive[0]], alive[:, alive[0]]
    return proposals, alive


def kmeans(attention: torch.Tensor, proposals: torch.Tensor, alive: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of Lloyd's clusters of all rows from the proposals, as `merge` gives them; empty clusters are no more.

    Euclidean, one start, as google/diffseg's optional refinement. Until it has converged, a device is waited for.
    """
    found = [_lloyd(rows, centres[there]) for rows, centres, there in zip(attention, proposals, alive, strict=True)]
    there = [centres.new_ones(len(centres), dtype=torch.bool) for centres in found]
    return pad_sequence(found, batch_first=True), pad_sequence(there, batch_first=True)


def _lloyd(attention: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """float32 [K', P], K' ≤ K, of attention [P, P] and centres [K, P]."""
    tolerance = KMEANS_TOLERANCE * attention.var(dim=0, correction=0).mean()
    assigned = None
    for _ in range(KMEANS_ITERATIONS):
        previous = assigned
        assigned = (centres.square().sum(dim=1) - 2 * attention @ centres.T).argmin(dim=1)
        present = assigned.unique()
        members = present[:, None] == assigned[None, :]
        moved = centres.clone()
        moved[present] = group_means(members[None], attention[None])[0]
        shift = (moved - centres).square().sum()
        centres = moved
        if (previous is not None and torch.equal(previous, assigned)) or shift <= tolerance:
            break
    return centres[present]
