"""Scores of a label map against a true one. All follow from one table: how many pixels each pair of regions shares.

Region ids carry no meaning on either side; only the partition counts.
Axes: T regions of the truth, K segments of the prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment

__all__ = [
    "Interval",
    "Matching",
    "Overlap",
    "bootstrap",
    "bootstrap_mean",
    "covering",
    "match_per_image",
    "mean_best_iou",
    "overlap",
    "splits_and_merges",
    "variation_of_information",
]

MOSTLY = 0.8
"""Hoover and others, PAMI 1996, compare at this share."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlap:
    """Shared pixels of two label maps, where the truth is not ignored.

    Attributes:
        shared: int64 [T, K], pixels of each truth region in each segment.
        truth_area: int64 [T]; more than the row sums of `shared` where the prediction ignores pixels: those are missed.
        truth_ids, segment_ids: the ids that rows and columns stand for, ascending; those of segments too that lie
            only where the truth is ignored.
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
    truth_ids, rows = _numbered(truth.ravel())
    segment_ids, columns = _numbered(prediction.ravel())
    table = np.bincount(rows * len(segment_ids) + columns, minlength=len(truth_ids) * len(segment_ids))
    table = table.reshape(len(truth_ids), len(segment_ids))
    if ignore_truth is not None:
        table, truth_ids = table[truth_ids != ignore_truth], truth_ids[truth_ids != ignore_truth]
    kept = np.full(len(segment_ids), True) if ignore_prediction is None else segment_ids != ignore_prediction
    return Overlap(shared=table[:, kept], truth_area=table.sum(1), truth_ids=truth_ids, segment_ids=segment_ids[kept])


def _numbered(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids of [N], ascending, and the place of each pixel's id among them: `numpy.unique`, without its sort."""
    if labels.dtype not in (np.uint8, np.uint16):
        ids, places = np.unique(labels, return_inverse=True)
        return ids, places
    counts = np.bincount(labels)
    ids = np.flatnonzero(counts)
    place = np.zeros(len(counts), np.int64)
    place[ids] = np.arange(len(ids))
    return ids, place[labels]


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


def variation_of_information(table: Overlap) -> float:
    """H(truth | prediction) + H(prediction | truth) in bits: 0 for the same partition, at most log2 of the pixels.

    Meila, 2005; Arbelaez and others, PAMI 2011, section 2.3. Pixels that the prediction ignores are one more segment.
    NaN where the truth ignores every pixel.
    """
    missed = table.truth_area - table.shared.sum(1)
    joint = np.column_stack([table.shared, missed]) / max(table.truth_area.sum(), 1)
    if not joint.any():
        return float("nan")
    return float(2 * _entropy(joint) - _entropy(joint.sum(0)) - _entropy(joint.sum(1)))


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def splits_and_merges(table: Overlap) -> tuple[int, int]:
    """How many regions of the truth are over-segmented and how many under-segmented, by Hoover's definitions.

    A region is split by two or more segments that lie in it with 80 % of their area and together hold 80 % of its own.
    Regions are merged by a segment that holds 80 % of each of two or more of them, and lies in these with 80 %.
    """
    segment_area = table.shared.sum(0)
    inside = (table.shared >= MOSTLY * segment_area) & (segment_area > 0)
    is_split = (inside.sum(1) > 1) & ((table.shared * inside).sum(1) >= MOSTLY * table.truth_area)
    held = table.shared >= MOSTLY * table.truth_area[:, None]
    merges = (held.sum(0) > 1) & ((table.shared * held).sum(0) >= MOSTLY * segment_area)
    return int(is_split.sum()), int(held[:, merges].any(1).sum())


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
    """A figure over images and half the width of its 95 % bootstrap interval."""

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
    (interval,) = bootstrap(scores[:, None], lambda sums: sums / len(scores), seed=seed, rounds=rounds)
    return interval


def bootstrap(
    features: np.ndarray | sparse.csr_array,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    seed: int = 0,
    rounds: int = 2000,
) -> list[Interval]:
    """Figures that follow from sums over images, with a percentile bootstrap over images.

    Args:
        features: float64 [N, F], a row an image; dense or sparse.
        statistic: of the sums, float64 [F], to figures [S]. Resamples that give NaN are left out of the interval.
        seed: of the resampling.
        rounds: resamples.
    """
    count = features.shape[0]
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [
            statistic(np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64) @ features)
            for _ in range(rounds)
        ]
    )
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    figures = statistic(np.ones(count) @ features)
    return [
        Interval(mean=float(figure), half_width=float(wide) / 2, count=count)
        for figure, wide in zip(figures, high - low, strict=True)
    ]
