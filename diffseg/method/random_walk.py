"""Spread scores along the self-attention by a random walk that leaves confident positions as they are.

This is the counterpart of AffinityNet's propagation (Ahn & Kwak, CVPR 2018, section 3.3), with the model's own
attention, or a learned affinity, as the weights. AffinityNet takes 256 steps on a sparse graph. Here each position
attends to all others, and a few steps are enough: more of them end in the same mean everywhere.

Axes: B images in the batch, K proposals, P = h·w token positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from diffseg.attention.bilinear import bilinear_matrix
from diffseg.attention.maps import Grid
from diffseg.attention.neighbours import half_disc, neighbour_slices

Flow = Callable[[torch.Tensor], torch.Tensor]
"""Product of float32 [B, K, h, w] with symmetric weights ≥ 0 between positions, whose overall scale has no effect."""

MIN_CHANGE = 1e-3
"""The walk of an image ends after a step that changes its scores by less than this share of their sum."""


def random_walk(
    scores: torch.Tensor,
    attention: torch.Tensor,
    *,
    power: float,
    steps: int,
    radius: int,
    seeds: float,
    affinity: Mapping[Grid, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Replace the scores of each position by a weighted mean of the scores of the positions that it is joined with.

    Args:
        scores: float32 [B, K, h, w], ≥ 0, on the grid of tokens.
        attention: float32 [B, P, P], rows sum to 1. It is symmetrised and raised to `power`.
        power: Exponent of the weights.
        steps: Largest number of steps.
        radius: Only positions closer than this many tokens are joined; 0: all are.
        seeds: Relative confidence from which scores stay as they are, see `confident_seeds`.
        affinity: Learned affinity of neighbours by offset, which replaces the attention (see
            `diffseg.affinity.features`); the affinity of a position to itself is 1.

    Returns:
        float32 [B, K, h, w]; the scores of a proposal stay within their range.
    """
    grid = (scores.shape[2], scores.shape[3])
    if affinity is not None:
        to_itself = torch.ones_like(scores[:, 0])
        to_others = {offset: weight.pow(power) for offset, weight in affinity.items()}
        flow = stencil_flow({(0, 0): to_itself, **to_others})
    else:
        flow = local_flow(attention, grid, radius, power) if radius else dense_flow(attention, power)
    return walk(scores, flow, confident_seeds(scores, seeds), steps)


def resize_maps(maps: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Resize float32 [B, K, h, w] to another grid: means where both sides shrink, else bilinear interpolation."""
    height, width = maps.shape[2:]
    if grid[0] < height and grid[1] < width:
        return F.adaptive_avg_pool2d(maps, grid)
    if grid == (height, width):
        return maps
    down, along = (
        bilinear_matrix(tokens, samples, device=maps.device)
        for tokens, samples in zip((height, width), grid, strict=True)
    )
    return down @ maps @ along.T


def walk(scores: torch.Tensor, flow: Flow, seeds: torch.Tensor, steps: int) -> torch.Tensor:
    """Take up to `steps` steps, each of which replaces scores by their weighted means except at seeds.

    Scores are not divided by the size of their proposal, because a small proposal would then win everywhere. An image
    whose last step changed less than `MIN_CHANGE` of its scores takes no further step, so its result does not depend on
    the other images of its batch.

    Args:
        scores: float32 [B, K, h, w].
        flow: Multiplies by the weights between positions.
        seeds: bool [B, 1, h, w], positions whose scores stay. So do those of a position without any weight.
        steps: Largest number of steps.
    """
    total = flow(torch.ones_like(scores[:, :1]))
    joined = (total > 0) & torch.isfinite(total)
    fixed, total = seeds | ~joined, total.where(joined, 1)
    moving = scores.new_ones(len(scores), 1, 1, 1, dtype=torch.bool)
    for _ in range(steps):
        moved = torch.where(fixed, scores, flow(scores) / total)
        change = (moved - scores).abs().sum(dim=(1, 2, 3), keepdim=True)
        size = scores.abs().sum(dim=(1, 2, 3), keepdim=True)
        scores = torch.where(moving, moved, scores)
        moving = moving & (change >= MIN_CHANGE * size)
        if scores.device.type == "cpu" and not moving.any():  # on other devices this would wait for the device
            break
    return scores


def confident_seeds(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Return the positions where the best proposal is nearly as confident as anywhere, bool [B, 1, h, w].

    Confidence is (best − second) / best, and a seed has at least `share` times the highest confidence of its proposal.
    A proposal that is best anywhere, by however little, therefore has a seed.

    Args:
        scores: float32 [B, K, h, w], ≥ 0.
        share: Above 0, at most 1.
    """
    two, proposals = scores.topk(min(2, scores.shape[1]), dim=1)
    best, label = two[:, :1].flatten(2), proposals[:, :1].flatten(2)
    margin = best - two[:, 1:].flatten(2) if scores.shape[1] > 1 else best
    confidence = margin / best.clamp_min(torch.finfo(torch.float32).tiny)
    highest = scores.new_zeros(len(scores), 1, scores.shape[1]).scatter_reduce_(2, label, confidence, "amax")
    seeds = (confidence > 0) & (confidence >= share * highest.gather(2, label))
    return seeds.unflatten(2, scores.shape[2:])


def dense_flow(attention: torch.Tensor, power: float) -> Flow:
    """Return the flow with weights (A + Aᵀ)^power between all positions, which take as much memory as the attention.

    Args:
        attention: float32 [B, P, P].
        power: Exponent of the weights.
    """
    weights = torch.empty_like(attention)
    for image, out in zip(attention, weights, strict=True):
        # A transposed copy of a whole matrix is many times faster in torch than one of a part, or adding a transpose.
        out.copy_(image.T)
        out.add_(image).pow_(power)

    def flow(scores: torch.Tensor) -> torch.Tensor:
        return (scores.flatten(2) @ weights).view_as(scores)

    return flow


def local_flow(attention: torch.Tensor, grid: Grid, radius: int, power: float) -> Flow:
    """Return the flow of `dense_flow` restricted to positions less than `radius` tokens apart, in far less memory."""
    offsets = [(0, 0), *half_disc(radius, grid)]
    return stencil_flow({offset: _symmetric_at(attention, grid, offset).pow_(power) for offset in offsets})


def stencil_flow(weights: Mapping[Grid, torch.Tensor]) -> Flow:
    """Return the flow with weights between each position and the position at an offset, in both directions.

    Args:
        weights: {(rows ≥ 0, columns): float32 [B, h − rows, w − |columns|]}, one weight for each position of the first
            slices of `neighbour_slices`.
    """

    def flow(scores: torch.Tensor) -> torch.Tensor:
        moved = torch.zeros_like(scores)
        for offset, weight in weights.items():
            first, second = neighbour_slices((scores.shape[2], scores.shape[3]), offset)
            moved[first].addcmul_(scores[second], weight[:, None])
            if offset != (0, 0):
                moved[second].addcmul_(scores[first], weight[:, None])
        return moved

    return flow


def _symmetric_at(attention: torch.Tensor, grid: Grid, offset: Grid) -> torch.Tensor:
    """Return A + Aᵀ between positions and those at the offset, float32 [B, h − rows, w − |columns|]."""
    (down, right), pairs = offset, attention.unflatten(2, grid).unflatten(1, grid)
    forward = pairs.diagonal(down, 1, 3).diagonal(right, 1, 2)
    backward = pairs.diagonal(-down, 1, 3).diagonal(-right, 1, 2)
    return forward + backward
