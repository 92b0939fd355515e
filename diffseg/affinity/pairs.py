"""Pairs of positions of the same or of different segments: where they come from, losses over them, and their ROC AUC.

A label is known where it is ≥ 0. Two positions with known labels form a pair of the same segment if their labels are
equal, else of different segments. Positions with unknown labels are in no pair.

Axes: B images in the batch, h and w of a grid of positions, N pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from scipy.stats import rankdata

from diffseg.attention.maps import Grid
from diffseg.attention.neighbours import neighbour_slices

UNKNOWN = -1
"""Label of a position that is in no pair."""

MAJORITY = 0.8
"""Smallest share of a position's pixels that must have a label for the position to have it."""

RADIUS = 8
"""Largest distance between the positions of a pair along either axis, in tokens."""

PAIRS = 2000
"""Largest number of pairs of each class, same segment and different segments, that are drawn from an image."""

FLOOR = 1e-5
"""Added to the argument of each logarithm."""

PairClass = Literal["background", "label", "apart"]
"""Both positions are background, both have one other label, or their labels differ."""


def labels_on_grid(labels: np.ndarray, grid: Grid) -> np.ndarray:
    """Give each position the label of at least a share of `MAJORITY` of its pixels, or `UNKNOWN`.

    Args:
        labels: int [H, W], unknown where < 0. The image covers the whole grid, as with fit="resize".
        grid: Height and width of the result, in tokens.

    Returns:
        int32 [h, w].
    """
    best, best_share = np.full(grid, UNKNOWN, dtype=np.int32), np.full(grid, MAJORITY, dtype=np.float32)
    for label in np.unique(labels[labels >= 0]):
        mask = torch.from_numpy((labels == label).astype(np.float32))[None, None]
        share = torch.nn.functional.adaptive_avg_pool2d(mask, grid)[0, 0].numpy()
        better = share >= best_share
        best[better], best_share[better] = label, share[better]
    return best


def choose_pairs(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw pairs of nearby positions with known labels, as many of the same segment as of different segments.

    Args:
        labels: int [h, w], unknown where < 0.
        seed: Seed of the draw.

    Returns:
        First and second positions, int64 [N] each, and whether the pair lies in the same segment, bool [N]. There are
        up to `PAIRS` pairs of each class, and no more than the rarer class has.
    """
    positions = np.arange(labels.size).reshape(labels.shape)
    height, width = labels.shape
    firsts, seconds = [], []
    for down, right in half_square(RADIUS):
        window = positions[: max(0, height - down), max(0, -right) : max(0, width - max(0, right))]
        firsts.append(window.ravel())
        seconds.append((window + down * width + right).ravel())
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    flat = labels.ravel()
    known = (flat[first] >= 0) & (flat[second] >= 0)
    first, second = first[known], second[known]
    same = flat[first] == flat[second]
    generator = np.random.default_rng(seed)
    count = min(PAIRS, int(same.sum()), int((~same).sum()))
    drawn = [generator.permutation(np.flatnonzero(same == pair_class))[:count] for pair_class in (True, False)]
    chosen = np.concatenate(drawn)
    return first[chosen], second[chosen], same[chosen]


def half_square(radius: int) -> list[Grid]:
    """Return the offsets, in rows and columns, to positions at most `radius` away along either axis.

    Of two opposite offsets only the one that points forward in reading order is listed.
    """
    reach = range(-radius, radius + 1)
    return [(y, x) for y in range(radius + 1) for x in reach if (y, x) > (0, 0)]


def pair_loss(affinity: torch.Tensor, pair_class: torch.Tensor) -> torch.Tensor:
    """Return ½ mean(1 − W) over pairs of the same segment + ½ mean(W) over pairs of different ones (AFA, equation 4).

    Args:
        affinity: [N] in (0, 1).
        pair_class: int [N]: 1 for the same segment, 0 for different segments, `UNKNOWN` for pairs that do not count. A
            class without pairs contributes 0.
    """
    parts = [
        torch.where(pair_class == target, (target - affinity).abs(), 0).sum()
        / (pair_class == target).sum().clamp_min(1)
        for target in (1, 0)
    ]
    return (parts[0] + parts[1]) / 2


def neighbour_loss(affinity: Mapping[Grid, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Return the loss of local affinity over pairs of background, pairs of one other label, and pairs of two labels.

    It is ¼ mean −ln W over the first + ¼ mean −ln W over the second + ½ mean −ln(1 − W) over the third. A class without
    pairs contributes 0. If one of the first two has none, the other counts ½, because segments without names have no
    background.

    Args:
        affinity: W, see `neighbour_affinity`.
        labels: int [B, h, w]; 0 is background, and < 0 is unknown.
    """
    sums: dict[PairClass, list[torch.Tensor]] = {"background": [], "label": [], "apart": []}
    counts: dict[PairClass, int] = dict.fromkeys(sums, 0)
    for pair_class, weight, chosen in _by_pair_class(affinity, labels):
        target = 1 - weight if pair_class == "apart" else weight
        sums[pair_class].append(torch.where(chosen, -(target + FLOOR).log(), 0).sum())
        counts[pair_class] += int(chosen.sum())
    means = {pair_class: torch.stack(sums[pair_class]).sum() / count for pair_class, count in counts.items() if count}
    same: list[PairClass] = ["background", "label"]
    same_means = [means[pair_class] for pair_class in same if pair_class in means]
    halves = [torch.stack(same_means).mean()] if same_means else []
    halves += [means["apart"]] if "apart" in means else []
    if not halves:
        return torch.stack([part for parts in sums.values() for part in parts]).sum()
    return torch.stack(halves).sum() / 2


def _by_pair_class(
    affinity: Mapping[Grid, torch.Tensor], labels: torch.Tensor
) -> Iterator[tuple[PairClass, torch.Tensor, torch.Tensor]]:
    """Yield, for each offset and class, the affinity of all pairs and which of them are of that class."""
    for offset, weight in affinity.items():
        first, second = (labels[part] for part in neighbour_slices((labels.shape[1], labels.shape[2]), offset))
        known, same = (first >= 0) & (second >= 0), first == second
        yield "background", weight, known & same & (first == 0)
        yield "label", weight, known & same & (first > 0)
        yield "apart", weight, known & ~same


def pair_affinities(affinity: Mapping[Grid, torch.Tensor], labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the affinity of all known pairs, float [N], and whether they are of the same segment, bool [N]."""
    parts = [(weight[chosen], name != "apart") for name, weight, chosen in _by_pair_class(affinity, labels)]
    values = torch.cat([part for part, _ in parts])
    return values, torch.cat([torch.full(part.shape, same, dtype=torch.bool) for part, same in parts])


def roc_auc(affinity: np.ndarray, same_segment: np.ndarray) -> float:
    """Return the ROC AUC of affinity over pairs of the same and of different segments.

    Args:
        affinity: float [N].
        same_segment: bool [N].

    Returns:
        The probability that a pair of the same segment has a higher affinity than a pair of different segments: 0.5 at
        chance level, NaN without both kinds of pairs.
    """
    positives, negatives = int(same_segment.sum()), int((~same_segment).sum())
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(affinity)[same_segment].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))
