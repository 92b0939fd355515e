"""Scores of a label map against a true one. All follow from one table: how many pixels each pair of regions shares.

Region ids carry no meaning on either side; only the partition counts.
Axes: T regions of the truth, K segments of the prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

__all__ = [
    "Interval",
    "Matching",
    "Overlap",
    "bootstrap_mean",
    "covering",
    "match_per_image",
    "mean_best_iou",
    "overlap",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlap:
    """Shared pixels of two label maps, where the truth is not ignored.

    Attributes:
        shared: int64 [T, K], pixels of each truth region in each segment.
        truth_area: int64 [T]; more than the row sums of `shared` where the prediction ignores pixels: those are missed.
        truth_ids, segment_ids: the ids that rows and columns stand for, ascending.
    """

    shared: np.ndarray
    truth_area: np.ndarray
    truth_ids: np.ndarray
    segment_ids: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union, float64 [T, K] in [0, 1]."""
        union = self.truth_area[:, None] + self.shared.sum(0)[None, :] - self.shared
        return self.shared / union

    @property
    def best_iou(self) -> np.ndarray:
        """The best intersection over union of each truth region, float64 [T] in [0, 1]; 0 without any segment."""
        return self.iou.max(1, initial=0.0)


def overlap(
    truth: np.ndarray, prediction: np.ndarray, *, ignore_truth: int | None = None, ignore_prediction: int | None = 65535
) -> Overlap:
    """Count shared pixels.

    Args:
        truth: integer [H, W].
        prediction: integer [H, W].
        ignore_truth: id of truth pixels that count for nothing at all; None: there is none.
        ignore_prediction: id of pixels in no segment; they are missed, not forgiven. None: every id is a segment.

    Raises:
        ValueError: where shapes differ or a map is not of integers.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape}, prediction {prediction.shape}; expected the same")
    for name, labels in (("truth", truth), ("prediction", prediction)):
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name} has dtype {labels.dtype}; expected integers")
    counted = np.full(truth.shape, True) if ignore_truth is None else truth != ignore_truth
    truth, prediction = truth[counted], prediction[counted]
    truth_ids, rows = np.unique(truth, return_inverse=True)
    segment_ids, columns = np.unique(prediction, return_inverse=True)
    table = np.bincount(rows * len(segment_ids) + columns, minlength=len(truth_ids) * len(segment_ids))
    table = table.reshape(len(truth_ids), len(segment_ids))
    kept = np.full(len(segment_ids), True) if ignore_prediction is None else segment_ids != ignore_prediction
    return Overlap(shared=table[:, kept], truth_area=table.sum(1), truth_ids=truth_ids, segment_ids=segment_ids[kept])


def covering(table: Overlap) -> float:
    """Segmentation covering of the truth by the prediction, in [0, 1]: best IoU of each region, weighted by its area.

    Arbelaez, Maire, Fowlkes, Malik, PAMI 2011, section 2.3. NaN where the truth ignores every pixel.
    """
    if not len(table.truth_area):
        return float("nan")
    return float(table.best_iou @ table.truth_area / table.truth_area.sum())


def mean_best_iou(table: Overlap) -> float:
    """Best IoU of each truth region, each region counting alike, in [0, 1]. NaN where the truth ignores every pixel."""
    return float(table.best_iou.mean()) if len(table.truth_area) else float("nan")


@dataclass(frozen=True, kw_only=True)
class Matching:
    """A one-to-one assignment of segments to truth regions.

    Attributes:
        miou: mean IoU over the truth regions in [0, 1]; a region without a segment counts 0.
        accuracy: share of counted pixels that lie in their region's segment, in [0, 1].
        segment_of: truth id -> segment id, of the matched regions.
    """

    miou: float
    accuracy: float
    segment_of: dict[int, int]


def match_per_image(table: Overlap) -> Matching:
    """Assign segments to truth regions for this image alone, so that the pixels they share are most (Hungarian).

    This is the protocol of DiffSeg's released evaluation, and more generous than one assignment for a whole data set:
    never compare figures of the two. NaN where the truth ignores every pixel.
    """
    if not len(table.truth_area):
        return Matching(miou=float("nan"), accuracy=float("nan"), segment_of={})
    rows, columns = linear_sum_assignment(table.shared, maximize=True)
    pairs = {
        int(table.truth_ids[t]): int(table.segment_ids[k])
        for t, k in zip(rows, columns, strict=True)
        if table.shared[t, k] > 0
    }
    return Matching(
        miou=float(table.iou[rows, columns].sum() / len(table.truth_area)),
        accuracy=float(table.shared[rows, columns].sum() / table.truth_area.sum()),
        segment_of=pairs,
    )


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over images and half the width of its 95 % bootstrap interval."""

    mean: float
    half_width: float
    count: int


def bootstrap_mean(values: Sequence[float] | np.ndarray, *, seed: int = 0, rounds: int = 2000) -> Interval:
    """Mean of one score per image, with a percentile bootstrap over images; NaN scores are left out.

    Args:
        values: one score per image, at least one of them finite.
        seed: of the resampling.
        rounds: resamples.
    """
    scores = np.asarray(values, np.float64)
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        raise ValueError("no image has a score")
    picks = np.random.default_rng(seed).integers(len(scores), size=(rounds, len(scores)))
    low, high = np.quantile(scores[picks].mean(1), [0.025, 0.975])
    return Interval(mean=float(scores.mean()), half_width=float(high - low) / 2, count=len(scores))
