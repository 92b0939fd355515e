"""Anchors, iterative merging and k-means: attention rows into proposals (DiffSeg section 3.3, algorithm 1).

Axes: P = h·w positions, M anchors, K proposals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from diffseg.attention import Grid
from diffseg.distance import symmetric_kl
from diffseg.settings import AnchorLayout, Consume

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


def greedy_groups(close: np.ndarray, consume: Consume) -> np.ndarray:
    """bool [K, M] members of each group of a greedy pass over bool [M, M], in order.

    paper: what a group took is gone. google: it starts no group any more, but a later group may average it once more.
    """
    free = np.ones(len(close), dtype=bool)
    groups = []
    for index in range(len(close)):
        if not free[index]:
            continue
        members = close[index] & free if consume == "paper" else close[index].copy()
        members[index] = True
        free &= ~members
        groups.append(members)
    return np.stack(groups)


def _means(members: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    weights = members.to(rows.dtype)
    return (weights / weights.sum(dim=1, keepdim=True)) @ rows


def merge(
    attention: torch.Tensor, *, anchors: np.ndarray, tau: Sequence[float], consume: Consume = "paper"
) -> torch.Tensor:
    """float32 [K, P] proposals out of float32 [P, P] aggregated attention, one round of merging a threshold of `tau`.

    Round 1 averages, for each anchor, all rows nearer than tau[0] to its own; the following rounds merge proposals
    nearer than tau[i] greedily in order. Distances are symmetric KL in nats; a row always belongs to its own anchor.
    """
    positions = torch.from_numpy(anchors).to(attention.device)
    members = symmetric_kl(attention[positions], attention) < tau[0]
    members[torch.arange(len(positions), device=members.device), positions] = True
    proposals = _means(members, attention)
    for threshold in tau[1:]:
        close = (symmetric_kl(proposals, proposals) < threshold).cpu().numpy()
        groups = greedy_groups(close, consume)
        proposals = _means(torch.from_numpy(groups).to(proposals.device), proposals)
    return proposals


def kmeans(attention: torch.Tensor, proposals: torch.Tensor) -> torch.Tensor:
    """float32 [K', P] means of Lloyd's clusters of all rows from the proposals, K' ≤ K: empty clusters are dropped.

    Euclidean, one start, as google/diffseg's optional refinement.
    """
    centres = proposals
    tolerance = KMEANS_TOLERANCE * attention.var(dim=0, correction=0).mean()
    assigned = None
    for _ in range(KMEANS_ITERATIONS):
        previous = assigned
        assigned = (centres.square().sum(dim=1) - 2 * attention @ centres.T).argmin(dim=1)
        present = assigned.unique()
        members = present[:, None] == assigned[None, :]
        moved = centres.clone()
        moved[present] = _means(members, attention)
        shift = (moved - centres).square().sum()
        centres = moved
        if (previous is not None and torch.equal(previous, assigned)) or shift <= tolerance:
            break
    return centres[present]
