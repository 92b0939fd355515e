"""Merge attention rows into proposals: anchors, iterative merging and k-means (DiffSeg section 3.3, algorithm 1).

Axes: B images, P = h·w positions, M anchors, K proposals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from diffseg.attention.maps import Grid
from diffseg.component_settings import AnchorLayout, Consume
from diffseg.devices import to_device, wait_for_numbers
from diffseg.method.distance import Metric, symmetric_kl
from diffseg.method.grouping import greedy_groups

BLOCK_ROWS = 256
"""Attention rows that are averaged at a time on a CPU."""

KMEANS_ITERATIONS = 300
"""Largest number of iterations of k-means."""

KMEANS_TOLERANCE = 1e-4
"""K-means stops when the summed squared shift of its centres is at most this share of the mean variance of a column.

This is the rule of scikit-learn.
"""

Proposals = tuple[torch.Tensor, torch.Tensor]
"""Proposals, float32 [B, K, P], and which of them are valid, bool [B, K]; the others are padding and hold zeros."""


def anchor_axis(tokens: int, count: int, layout: AnchorLayout) -> np.ndarray:
    """Return the positions of anchors along one axis.

    Args:
        tokens: Length of the axis.
        count: Number of anchors; a shorter axis has one anchor per token.
        layout: "even" places them from the first to the last token in equal steps, rounded. "google" takes whole steps
            of (tokens − 1) // (count − 1), centred: 1, 5, …, 61 for 16 anchors of 64 tokens. Where the step does not
            divide the axis, this leaves out the borders (15 … 47 for 33 anchors of 64 tokens).

    Returns:
        int64 [count], ascending.
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
    """Return the row-major positions, int64 [M], of an anchor grid with `per_side` anchors on each side."""
    rows, columns = (anchor_axis(side, per_side, layout) for side in grid)
    return (rows[:, None] * grid[1] + columns[None, :]).ravel()


def group_means(members: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the mean of each group's rows, float32 [B, K, P]; an empty group gives zeros.

    Args:
        members: bool [B, K, n], which rows belong to each group.
        rows: float32 [B, n, P].
    """
    weights = members.to(rows.dtype)
    weights /= weights.sum(dim=-1, keepdim=True).clamp_min(1)
    if not _may_read_values(rows):
        return weights @ rows
    # The members of a group lie close together in the image, so most groups have none in a given block of rows.
    means = torch.zeros(*weights.shape[:2], rows.shape[-1])
    for start in range(0, rows.shape[1], BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        present = members[0, :, block].any(dim=1).nonzero()[:, 0]
        means[0].index_add_(0, present, weights[0, present, block] @ rows[0, block])
    return means


def _may_read_values(rows: torch.Tensor) -> bool:
    """Return whether values may decide what is computed.

    Reading them on a device would wait for it, and several images would need several shapes.
    """
    return len(rows) == 1 and rows.device.type == "cpu"


def anchor_distances(attention: torch.Tensor, anchors: np.ndarray, metric: Metric) -> torch.Tensor:
    """Return the distance from each anchor's row to all rows of aggregated attention [B, P, P], float32 [B, M, P]."""
    return metric(attention[:, to_device(torch.from_numpy(anchors), attention.device)], attention)


def merge(
    attention: torch.Tensor,
    *,
    anchors: np.ndarray,
    tau: Sequence[float],
    consume: Consume = "paper",
    metric: Metric = symmetric_kl,
    first_distances: torch.Tensor | None = None,
) -> Proposals:
    """Merge the rows of aggregated attention into proposals (DiffSeg algorithm 1).

    Round 1 averages, for each anchor, all rows whose distance to the anchor's row is below tau[0]; a row always belongs
    to its own anchor. Each following round merges proposals whose distance is below tau[i], greedily and in order.

    Args:
        attention: float32 [B, P, P], rows sum to 1.
        anchors: int64 [M], positions.
        tau: Threshold of each round, in units of the metric.
        consume: Whether a merged proposal may be averaged again, see `greedy_groups`.
        metric: Distance between rows.
        first_distances: Distances of round 1, float32 [B, M, P], if they are known (`anchor_distances`).

    Returns:
        K is the largest number of proposals that an image is left with, so that no later step works on more. To learn
        it, the host waits for the device once.
    """
    positions = to_device(torch.from_numpy(anchors), attention.device)
    distances = anchor_distances(attention, anchors, metric) if first_distances is None else first_distances
    members = distances < tau[0]
    members[:, torch.arange(len(positions), device=members.device), positions] = True
    proposals = group_means(members, attention)
    valid = torch.ones_like(proposals[..., 0], dtype=torch.bool)
    for threshold in tau[1:]:
        close = metric(proposals, proposals) < threshold
        groups, valid = greedy_groups(close, valid, consume)
        proposals = group_means(groups, proposals)
        if _may_read_values(attention):
            proposals, valid = proposals[:, valid[0]], valid[:, valid[0]]
    return (proposals, valid) if _may_read_values(attention) or len(tau) == 1 else drop_padding(proposals, valid)


def drop_padding(proposals: torch.Tensor, valid: torch.Tensor) -> Proposals:
    """Move the valid proposals of each image to the front, in their order, and cut off what is padding in all images.

    Args:
        proposals: float32 [B, K, P].
        valid: bool [B, K].
    """
    most = max(1, *wait_for_numbers(valid.sum(dim=1)))
    order = valid.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return proposals.gather(1, order[..., None].expand(-1, -1, proposals.shape[-1])), valid.gather(1, order)


def kmeans(attention: torch.Tensor, proposals: torch.Tensor, valid: torch.Tensor) -> Proposals:
    """Refine proposals by k-means over all rows, as google/diffseg optionally does; empty clusters are removed.

    It is Lloyd's algorithm with Euclidean distances and a single start. The host waits for a device until the
    clusters have converged.

    Args:
        attention: float32 [B, P, P], rows sum to 1.
        proposals: float32 [B, K, P], the first centres.
        valid: bool [B, K], which proposals are not padding.
    """
    clusters = [_lloyd(rows, centres[keep]) for rows, centres, keep in zip(attention, proposals, valid, strict=True)]
    valid_clusters = [centres.new_ones(len(centres), dtype=torch.bool) for centres in clusters]
    return pad_sequence(clusters, batch_first=True), pad_sequence(valid_clusters, batch_first=True)


def _lloyd(attention: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return the centres of the clusters of rows [P, P], float32 [K', P] with K' ≤ K, from centres [K, P]."""
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
