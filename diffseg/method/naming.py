"""Names for segments, from maps of where each name is looked at (DiffSeg section 3.5, and google/diffseg).

Axes: B images, K segments or proposals, T names, h and w of a grid, P = h·w its positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from diffseg.component_settings import Vote
from diffseg.segmentation import BACKGROUND

NO_NAME, BACKGROUND_INDEX = -1, -2
"""In the place of a name's index: between the two thresholds, or below both."""


def name_of(index: int, names: Sequence[str]) -> str | None:
    """What an index stands for among the names of an image."""
    return names[index] if index >= 0 else (BACKGROUND if index == BACKGROUND_INDEX else None)


def vote_names(
    proposals: torch.Tensor, maps: torch.Tensor, counts: torch.Tensor, vote: Vote
) -> tuple[torch.Tensor, torch.Tensor]:
    """The name of each proposal, int64 [B, K], and how sure that is, float32 [B, K], 0 to 1.

    proposals: float32 [B, K, H, W], ≥ 0; a segment is where its proposal is the highest. maps: float32 [B, T, h, w],
    ≥ 0, of the names. counts: int64 [B], names that an image has, the first of T; without any all is background.

    share: of the names' attention at a position, the mean share over the segment decides; the score is that share times
    the mean strength, in units of the segment where the name is strongest. Of two names that both stand out everywhere
    the stronger one wins; a name that an image's label promises is told from what is around it by its strength.
    mean, mode: of google/diffseg. Each map has norm 1; the mean over the segment decides, or how often a name is the
    highest; the score is the winner's share of them. (The code takes the median of the indices for the mode.)
    """
    inside = _memberships(proposals, (maps.shape[-2], maps.shape[-1]))
    area = inside.sum(dim=-1, keepdim=True).clamp_min(1e-6)
    looked = maps.flatten(2)
    if vote == "share":
        share = looked / looked.sum(dim=1, keepdim=True).clamp_min(1e-12)
        shares, strengths = (_means(inside, each, area) for each in (share, looked))
        best, index = shares.max(dim=-1)
        strength = strengths / strengths.amax(dim=1, keepdim=True).clamp_min(1e-12)
        score = best * strength.gather(2, index[..., None])[..., 0]
    else:
        normal = looked / looked.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        votes = F.one_hot(normal.argmax(dim=1), maps.shape[1]).transpose(1, 2).float() if vote == "mode" else normal
        each = _means(inside, votes, area)
        best, index = each.max(dim=-1)
        score = best / each.sum(dim=-1).clamp_min(1e-12)
    nameless = (counts == 0)[:, None]
    return torch.where(nameless, BACKGROUND_INDEX, index), torch.where(nameless, 0.0, score.clamp(0, 1))


def _memberships(proposals: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """float32 [B, K, P]: how much of each segment lies in each position of a grid, in its own finer or equal places."""
    batch, count, height, width = proposals.shape
    rows, columns = (
        torch.arange(places, device=proposals.device) * cells // places
        for places, cells in zip((height, width), grid, strict=True)
    )
    positions = (rows[:, None] * grid[1] + columns).flatten()
    inside = proposals.new_zeros(batch, count * grid[0] * grid[1])
    places = proposals.argmax(dim=1).flatten(1) * (grid[0] * grid[1]) + positions
    return inside.scatter_add_(1, places, inside.new_ones(()).expand_as(places)).unflatten(1, (count, -1))


def _means(inside: torch.Tensor, values: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """float32 [B, K, T], means over each segment of [B, T, P]."""
    return inside @ values.transpose(1, 2) / area


def class_maps(maps: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Scores of names themselves, float32 [B, T, h, w], 0 to 1: each name's share times its strength, peak 1.

    The strength is that of class activation maps: in units of the highest of its map. maps, counts: as of `vote_names`.
    """
    share = maps / maps.sum(dim=1, keepdim=True).clamp_min(1e-12)
    strength = maps / maps.amax(dim=(2, 3), keepdim=True).clamp_min(1e-12)
    there = torch.arange(maps.shape[1], device=maps.device) < counts[:, None]
    return torch.where(there[..., None, None], share * strength, 0)


def add_background(maps: torch.Tensor, background_below: float, ignore_below: float) -> torch.Tensor:
    """Class maps with two more, [B, T + 2, h, w]: of the background and of what is neither, 1 where they win.

    A position is background where all classes are below `background_below`, and nothing where the best is below
    `ignore_below`.
    """
    best = maps.amax(dim=1, keepdim=True) if maps.shape[1] else torch.zeros_like(maps.sum(dim=1, keepdim=True))
    background = (best < background_below) | (best <= 0)
    unsure = (best < ignore_below) & ~background
    kept = torch.where(background | unsure, 0, maps)
    return torch.cat([kept, background.float(), unsure.float()], dim=1)


def apply_thresholds(
    names: torch.Tensor, scores: torch.Tensor, background_below: float, ignore_below: float
) -> torch.Tensor:
    """The names of segments, int64 [B, K], where those with a score below a threshold are background or nothing."""
    unsure = torch.where((scores < ignore_below) & (names >= 0), NO_NAME, names)
    return torch.where((scores < background_below) & (names >= 0), BACKGROUND_INDEX, unsure)
