"""Name segments by maps of how much each position attends to each name (DiffSeg section 3.5, and google/diffseg).

Axes: B images, K segments or proposals, T names, h and w of a grid, P = h·w its positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from diffseg.component_settings import Vote
from diffseg.segmentation import BACKGROUND

NO_NAME, BACKGROUND_INDEX = -1, -2
"""Special indices of a name: its score lies between the two thresholds, or below both."""

NO_SCORE = 1e-30
"""A score below that of any class with evidence, and above that of classes without any."""


def name_of(index: int, names: Sequence[str]) -> str | None:
    """Return the name, `background` or None that an index stands for among the names of an image."""
    return names[index] if index >= 0 else (BACKGROUND if index == BACKGROUND_INDEX else None)


def vote_names(
    proposals: torch.Tensor, maps: torch.Tensor, counts: torch.Tensor, vote: Vote
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose a name for each proposal from the names' maps over its segment.

    A segment consists of the positions where its proposal is the highest.

    Args:
        proposals: float32 [B, K, H, W], ≥ 0.
        maps: float32 [B, T, h, w], ≥ 0, one map for each name.
        counts: int64 [B], how many of the T names each image has, starting from the first. An image without names
            consists of background.
        vote: How the name is chosen, see `_vote_by_share` and `_vote_by_norm`.

    Returns:
        The index of each proposal's name, int64 [B, K], and its score, float32 [B, K], 0 to 1.
    """
    inside = _memberships(proposals, (maps.shape[-2], maps.shape[-1]))
    area = inside.sum(dim=-1, keepdim=True).clamp_min(1e-6)
    flat = maps.flatten(2)
    index, score = (
        _vote_by_share(flat, inside, area) if vote in ("share", "goca") else _vote_by_norm(flat, inside, area, vote)
    )
    nameless = (counts == 0)[:, None]
    return torch.where(nameless, BACKGROUND_INDEX, index), torch.where(nameless, 0.0, score.clamp(0, 1))


def _vote_by_share(maps: torch.Tensor, inside: torch.Tensor, area: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the name with the largest mean share of the names' attention over the segment.

    The score is that share times the name's mean strength over the segment, relative to the segment where the name is
    strongest. If two names stand out everywhere, the stronger one wins. A name that the labels of an image promise is
    distinguished from its surroundings by its strength.
    """
    share = maps / maps.sum(dim=1, keepdim=True).clamp_min(1e-12)
    shares, strengths = (_segment_means(inside, values, area) for values in (share, maps))
    best, index = shares.max(dim=-1)
    strength = strengths / strengths.amax(dim=1, keepdim=True).clamp_min(1e-12)
    return index, best * strength.gather(2, index[..., None])[..., 0]


def _vote_by_norm(
    maps: torch.Tensor, inside: torch.Tensor, area: torch.Tensor, vote: Vote
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose as google/diffseg does, from maps that are scaled to norm 1.

    "mean" chooses the name with the largest mean over the segment, "mode" the name that is the highest most often; the
    released code takes the median of the indices for the mode. The score is the winner's share of all names.
    """
    normalised = maps / maps.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    votes = normalised
    if vote == "mode":
        votes = F.one_hot(normalised.argmax(dim=1), maps.shape[1]).transpose(1, 2).float()
    totals = _segment_means(inside, votes, area)
    best, index = totals.max(dim=-1)
    return index, best / totals.sum(dim=-1).clamp_min(1e-12)


def _memberships(proposals: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Count the positions of each segment in each cell of a grid that is at most as fine; float32 [B, K, P].

    A position belongs to the cell in which its centre lies.
    """
    batch, count, height, width = proposals.shape
    rows, columns = (
        (2 * torch.arange(places, device=proposals.device) + 1) * cells // (2 * places)
        for places, cells in zip((height, width), grid, strict=True)
    )
    cells = (rows[:, None] * grid[1] + columns).flatten()
    inside = proposals.new_zeros(batch, count * grid[0] * grid[1])
    elements = proposals.argmax(dim=1).flatten(1) * (grid[0] * grid[1]) + cells
    return inside.scatter_add_(1, elements, inside.new_ones(()).expand_as(elements)).unflatten(1, (count, -1))


def _segment_means(inside: torch.Tensor, values: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """Return the means over each segment of values [B, T, P], float32 [B, K, T]."""
    return inside @ values.transpose(1, 2) / area


def class_maps(maps: torch.Tensor, counts: torch.Tensor, *, last_is_background: bool = False) -> torch.Tensor:
    """Return scores of the names themselves: at each position, the name's share times its strength.

    The strength is relative to the highest value of the name's map, as in class activation maps.

    Args:
        maps: float32 [B, T, h, w], see `vote_names`.
        counts: int64 [B], see `vote_names`.
        last_is_background: Whether the last map is that of the background, which all images have.

    Returns:
        float32 [B, T, h, w], 0 to 1.
    """
    share = maps / maps.sum(dim=1, keepdim=True).clamp_min(1e-12)
    strength = maps / maps.amax(dim=(2, 3), keepdim=True).clamp_min(1e-12)
    present = torch.arange(maps.shape[1], device=maps.device) < counts[:, None]
    if last_is_background:
        present[:, -1] = True
    return torch.where(present[..., None, None], share * strength, 0)


def add_background(maps: torch.Tensor, background_below: float, ignore_below: float) -> torch.Tensor:
    """Append a map of the background and a map of ignored positions to class maps.

    The two maps are made so that the thresholds hold after upsampling, and objects keep their size. Where no threshold
    for ignored positions is above that of the background, the background is constant, so that it wins wherever all
    classes are below it. Otherwise ignored positions are constant, and the background is higher than they are by as
    much as the best class is below its threshold. Margins so tell how far the best class is from a threshold. An image
    without any class is background.

    Args:
        maps: float32 [B, T, h, w], see `class_maps`.
        background_below: Threshold, 0 to 1.
        ignore_below: Threshold, 0 to 1.

    Returns:
        float32 [B, T + 2, h, w].
    """
    ignored = torch.full_like(maps.sum(dim=1, keepdim=True), max(ignore_below, NO_SCORE))
    if ignore_below <= background_below:
        background = torch.full_like(ignored, max(background_below, NO_SCORE))
        return torch.cat([maps, background, torch.zeros_like(ignored)], dim=1)
    best = maps.amax(dim=1, keepdim=True) if maps.shape[1] else torch.zeros_like(ignored)
    background = (ignore_below + background_below - best).clamp_min(0)
    is_empty = best.amax(dim=(2, 3), keepdim=True) <= 0
    return torch.cat([maps, torch.where(is_empty, 1.0, background), ignored], dim=1)


def apply_thresholds(
    names: torch.Tensor, scores: torch.Tensor, background_below: float, ignore_below: float
) -> torch.Tensor:
    """Replace names with low scores by background or by no name.

    Args:
        names: int64 [B, K], indices of names.
        scores: float32 [B, K], their scores, 0 to 1.
        background_below: A name with a lower score becomes `BACKGROUND_INDEX`.
        ignore_below: Another name with a lower score becomes `NO_NAME`.

    Returns:
        int64 [B, K].
    """
    thresholded = torch.where((scores < ignore_below) & (names >= 0), NO_NAME, names)
    return torch.where((scores < background_below) & (names >= 0), BACKGROUND_INDEX, thresholded)
