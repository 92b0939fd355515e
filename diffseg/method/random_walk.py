"""Scores along the self-attention: a random walk in which confident positions stay as they are.

The counterpart of AffinityNet's propagation (Ahn & Kwak, CVPR 2018, section 3.3) with the model's own attention in the
place of a learned affinity. There a sparse graph is walked 256 steps; here a position sees all others, and a few steps
are enough: more of them end in the same mean everywhere.

Axes: B images in the batch, K proposals, P = h·w token positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from diffseg.attention.bilinear import bilinear_matrix
from diffseg.attention.maps import Grid
from diffseg.attention.neighbours import half_disc, windows
from diffseg.devices import to_device

Flow = Callable[[torch.Tensor], torch.Tensor]
"""float32 [B, K, h, w] to its product with symmetric weights ≥ 0 between positions; their scale does not count."""

STILL = 1e-3
"""A walk ends where a step changes less than this share of the scores."""


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
    """Scores on the grid of tokens, each the mean of those that its position and its like attend to.

    scores: float32 [B, K, h, w], ≥ 0; so is the result, within the range of each proposal's own. attention: float32
    [B, P, P], rows sum to 1; it is symmetrised and raised to the `power`. radius: in tokens, only positions nearer than
    this are joined; 0: all. seeds: see `confident`; these stay as they are. learned: affinity of neighbours, by offset,
    in the place of the attention (see `diffseg.affinity.features`); that of a position to itself is 1.
    """
    grid = (scores.shape[2], scores.shape[3])
    if affinity is not None:
        flow = stencil_flow(
            {
                (0, 0): torch.ones_like(scores[:, 0]),
                **{offset: weight.pow(power) for offset, weight in affinity.items()},
            }
        )
    else:
        flow = local_flow(attention, grid, radius, power) if radius else dense_flow(attention, power)
    return walk(scores, flow, confident(scores, seeds), steps)


def resize_maps(maps: torch.Tensor, grid: Grid) -> torch.Tensor:
    """float32 [B, K, h, w] of any grid on another one: bilinear, or the mean of what a place covers."""
    height, width = maps.shape[2:]
    if grid[0] < height and grid[1] < width:
        return F.adaptive_avg_pool2d(maps, grid)
    if grid == (height, width):
        return maps
    down, along = (to_device(bilinear_matrix(*axis), maps.device) for axis in ((height, grid[0]), (width, grid[1])))
    return down @ maps @ along.T


def walk(scores: torch.Tensor, flow: Flow, seeds: torch.Tensor, steps: int) -> torch.Tensor:
    """Up to `steps` times: each position's scores become the weighted mean of all others', but where there are seeds.

    scores: float32 [B, K, h, w]. seeds: bool [B, 1, h, w]. A position without any weight keeps its scores. Nothing is
    divided by how much of a proposal there is: a small one would win everywhere. An image whose step changed less than
    `STILL` of its scores takes no further one, whatever the others of its batch do.
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
        moving = moving & (change >= STILL * size)
        if scores.device.type == "cpu" and not moving.any():  # elsewhere it would have to be waited for
            break
    return scores


def confident(scores: torch.Tensor, share: float) -> torch.Tensor:
    """bool [B, 1, h, w] of scores [B, K, h, w]: where the best is at least `share` times as sure as where it is surest.

    It is sure by (best − second) / best. Every proposal that is best anywhere, by however little, has such a place.
    """
    two, places = scores.topk(min(2, scores.shape[1]), dim=1)
    best, label = two[:, :1].flatten(2), places[:, :1].flatten(2)
    margin = best - two[:, 1:].flatten(2) if scores.shape[1] > 1 else best
    sure = margin / best.clamp_min(torch.finfo(torch.float32).tiny)
    surest = scores.new_zeros(len(scores), 1, scores.shape[1]).scatter_reduce_(2, label, sure, "amax")
    seeds = (sure > 0) & (sure >= share * surest.gather(2, label))
    return seeds.unflatten(2, scores.shape[2:])


def dense_flow(attention: torch.Tensor, power: float) -> Flow:
    """Weights between all positions, (A + Aᵀ)^power, of float32 [B, P, P]; they take as much memory."""
    weights = torch.empty_like(attention)
    for own, out in zip(attention, weights, strict=True):
        out.copy_(own.T)  # torch transposes a whole matrix many times faster than a part of it, or while it adds
        out.add_(own).pow_(power)

    def flow(scores: torch.Tensor) -> torch.Tensor:
        return (scores.flatten(2) @ weights).view_as(scores)

    return flow


def local_flow(attention: torch.Tensor, grid: Grid, radius: int, power: float) -> Flow:
    """Weights as of `dense_flow`, but only between positions less than `radius` tokens apart, in far less memory."""
    offsets = [(0, 0), *half_disc(radius, grid)]
    return stencil_flow({offset: _joined(attention, grid, offset).pow_(power) for offset in offsets})


def stencil_flow(weights: Mapping[Grid, torch.Tensor]) -> Flow:
    """Weights between positions and those at an offset, which count both ways.

    weights: {(rows ≥ 0, columns): float32 [B, h − rows, w − |columns|]}, for each position of `windows`' first.
    """

    def flow(scores: torch.Tensor) -> torch.Tensor:
        moved = torch.zeros_like(scores)
        for offset, weight in weights.items():
            own, other = windows((scores.shape[2], scores.shape[3]), offset)
            moved[own].addcmul_(scores[other], weight[:, None])
            if offset != (0, 0):
                moved[other].addcmul_(scores[own], weight[:, None])
        return moved

    return flow


def _joined(attention: torch.Tensor, grid: Grid, offset: Grid) -> torch.Tensor:
    """A + Aᵀ, float32 [B, h − rows, w − |columns|], between positions and those at the offset, of float32 [B, P, P]."""
    (down, right), pairs = offset, attention.unflatten(2, grid).unflatten(1, grid)
    there = pairs.diagonal(down, 1, 3).diagonal(right, 1, 2)
    return there + pairs.diagonal(-down, 1, 3).diagonal(-right, 1, 2)
