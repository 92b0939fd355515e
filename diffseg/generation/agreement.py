"""Choose the threshold of each class at which its raw and its refined map agree best (DiffuMask, section 3.3).

DiffuMask compares masks at several thresholds with the mask of AffinityNet, and keeps the one that overlaps most. Here
the map that the stages after `cross` refined takes the place of AffinityNet's, and is compared at the same threshold.
What is maximised is the mean IoU of the class and of the rest of the image, because larger masks overlap more by
themselves. docs/generate.md has the measurement by which this was chosen.

Axes: B images, T classes, h and w positions of a map, G thresholds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from diffseg.attention.aggregate import average_cross_attention
from diffseg.method.naming import class_maps
from diffseg.method.random_walk import resize_maps
from diffseg.method.signals import Scores, Signals

THRESHOLDS = tuple(sorted((step / 100 for step in range(40, 81)), key=lambda threshold: abs(threshold - 0.6)))
"""The thresholds that are compared, from the middle outwards: of equally good ones the first is chosen."""


class Agreement(NamedTuple):
    """The chosen thresholds.

    Attributes:
        thresholds: float64 [B, T], of scores whose lowest and highest value in the image are 0 and 1.
        iou: float64 [B, T], mean of two intersections over union at the threshold, that of the raw and the refined mask
            and that of their complements, 0 to 1; 0 if the two masks do not overlap.
    """

    thresholds: torch.Tensor
    iou: torch.Tensor


def raw_class_maps(signals: Signals) -> torch.Tensor:
    """Return the classes' scores from cross-attention alone, float32 [B, T, h, w], 0 to 1."""
    assert signals.cross_attention is not None
    assert signals.name_counts is not None
    maps, _ = average_cross_attention(signals.cross_attention, include_coarsest=False)
    return class_maps(maps, signals.name_counts)


def refined_class_maps(scores: Scores, classes: int) -> torch.Tensor:
    """Return the classes' scores at the end of the method, float32 [B, T, h, w].

    If the scores are those of named segments, a class has score 1 in all segments with its name, and 0 elsewhere.

    Args:
        scores: Scores of classes, or of segments with names.
        classes: T.
    """
    assert scores.names is not None
    if scores.of_classes:
        index = torch.where(scores.names >= 0, scores.names, classes)
        maps = scores.maps.new_zeros(len(scores.maps), classes + 1, *scores.maps.shape[2:])
        maps.scatter_(1, index[:, :, None, None].expand_as(scores.maps), scores.maps)
        return maps[:, :classes]
    best = scores.maps.argmax(dim=1)
    names = scores.names.gather(1, best.flatten(1)).view_as(best)
    return torch.stack([names == name for name in range(classes)], dim=1).float()


def best_thresholds(raw: torch.Tensor, refined: torch.Tensor) -> Agreement:
    """Choose for each class the threshold at which the masks of both maps agree best, see `Agreement.iou`.

    For each position, the thresholds are counted that both of its scores reach, and those that at least one of them
    reaches. Histograms of these two counts, summed from the top, are intersection and union at every threshold.

    Args:
        raw: float32 [B, T, h, w], scaled by `to_unit_range` before the comparison.
        refined: float32 [B, T, h, w], scaled in the same way.
    """
    ascending = sorted(THRESHOLDS)
    edges = torch.tensor(ascending, dtype=torch.float64, device=raw.device)
    reached = [
        torch.searchsorted(edges, to_unit_range(maps).flatten(2).double(), right=True) for maps in (raw, refined)
    ]
    intersection, union = (_counts_from(pick(*reached)) for pick in (torch.minimum, torch.maximum))
    positions = raw.shape[2] * raw.shape[3]
    rest = torch.where(
        intersection < positions, (positions - union) / (positions - intersection).clamp_min(1).double(), 1
    )
    iou = torch.where(intersection > 0, (intersection / union.clamp_min(1).double() + rest) / 2, 0)
    iou = iou[..., [ascending.index(threshold) for threshold in THRESHOLDS]]
    best = iou.argmax(dim=2, keepdim=True)
    thresholds = torch.tensor(THRESHOLDS, dtype=torch.float64, device=raw.device)
    return Agreement(thresholds[best[..., 0]], iou.gather(2, best)[..., 0])


def to_unit_range(maps: torch.Tensor) -> torch.Tensor:
    """Scale each map [B, T, h, w] linearly, so that its lowest value becomes 0 and its highest 1.

    A constant map becomes 1, because the class is equally strong everywhere, or 0 if its value is not positive.
    """
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    span = high - low
    return torch.where(span > 0, (maps - low) / torch.where(span > 0, span, 1), (maps > 0).to(maps.dtype))


def _counts_from(reached: torch.Tensor) -> torch.Tensor:
    """Return how many positions reach each threshold, int64 [B, T, G].

    Args:
        reached: int64 [B, T, h·w], the number of thresholds that each position reaches.
    """
    counts = reached.new_zeros(*reached.shape[:2], len(THRESHOLDS) + 1)
    counts.scatter_add_(2, reached, torch.ones_like(reached))
    return counts.flip(2).cumsum(dim=2).flip(2)[..., 1:]


def agreement_of(signals: Signals, scores: Scores) -> Agreement:
    """Compare the maps of cross-attention with scores at the end of the method, on the grid of the scores."""
    raw = raw_class_maps(signals)
    refined = refined_class_maps(scores, raw.shape[1])
    return best_thresholds(resize_maps(raw, (refined.shape[2], refined.shape[3])), refined)


def scale_to_half(scores: Scores, thresholds: torch.Tensor, counts: torch.Tensor) -> Scores:
    """Scale scores of classes linearly on both sides of their thresholds, so that every threshold becomes 0.5.

    Args:
        scores: Scores of classes.
        thresholds: float64 [B, T], see `Agreement`.
        counts: int64 [B], the number of classes of each image; the scores of the others become 0.
    """
    threshold = thresholds[:, :, None, None].float()
    unit = to_unit_range(refined_class_maps(scores, thresholds.shape[1]))
    scaled = torch.where(unit < threshold, unit / threshold, 1 + (unit - threshold) / (1 - threshold)) / 2
    classes = torch.arange(thresholds.shape[1], device=unit.device)
    present = (classes < counts[:, None])[:, :, None, None]
    return replace(scores, maps=torch.where(present, scaled, 0), names=classes.expand(len(unit), -1))
