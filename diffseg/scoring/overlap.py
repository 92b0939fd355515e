"""Scores of a label map against ground truth that follow from one table: the pixels that each pair of regions shares.

Region ids have no meaning on either side; only the partitions are compared.

Axes: H and W pixels, T regions of the ground truth, K segments of the prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

__all__ = [
    "Matching",
    "Overlap",
    "covering",
    "match_per_image",
    "mean_best_iou",
    "overlap",
    "splits_and_merges",
    "variation_of_information",
]

HOOVER_SHARE = 0.8
"""Share of an area above which Hoover and others (PAMI 1996) count a region as contained in another."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlap:
    """Shared pixels of two label maps where the ground truth is not ignored.

    Attributes:
        shared: int64 [T, K], pixels of each ground-truth region in each segment.
        truth_area: int64 [T], pixels of each region. They exceed the row sums of `shared` where the prediction ignores
            pixels, which count as missed.
        truth_ids: The ids of the rows, ascending.
        segment_ids: The ids of the columns, ascending, including segments that lie only where the ground truth is
            ignored.
    """

    shared: np.ndarray
    truth_area: np.ndarray
    truth_ids: np.ndarray
    segment_ids: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union, float64 [T, K], 0 to 1."""
        union = self.truth_area[:, None] + self.shared.sum(0)[None, :] - self.shared
        return self.shared / union

    @property
    def best_iou(self) -> np.ndarray:
        """Best intersection over union of each ground-truth region, float64 [T], 0 to 1; 0 without segments."""
        return self.iou.max(1, initial=0.0)


def overlap(
    truth: np.ndarray, prediction: np.ndarray, *, ignore_truth: int | None = None, ignore_prediction: int | None = 65535
) -> Overlap:
    """Count the pixels that each ground-truth region shares with each segment.

    Args:
        truth: Ground truth, integers [H, W].
        prediction: Label map, integers [H, W].
        ignore_truth: Id of ground-truth pixels that are not counted at all; None: all pixels are counted.
        ignore_prediction: Id of pixels in no segment. They count as missed, not as ignored. None: every id is a
            segment.

    Raises:
        ValueError: The shapes differ, or a map does not hold integers.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape}, prediction {prediction.shape}; expected the same")
    for name, labels in (("truth", truth), ("prediction", prediction)):
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name} has dtype {labels.dtype}; expected integers")
    truth_ids, rows = _unique_inverse(truth.ravel())
    segment_ids, columns = _unique_inverse(prediction.ravel())
    table = np.bincount(rows * len(segment_ids) + columns, minlength=len(truth_ids) * len(segment_ids))
    table = table.reshape(len(truth_ids), len(segment_ids))
    if ignore_truth is not None:
        table, truth_ids = table[truth_ids != ignore_truth], truth_ids[truth_ids != ignore_truth]
    kept = np.full(len(segment_ids), True) if ignore_prediction is None else segment_ids != ignore_prediction
    return Overlap(shared=table[:, kept], truth_area=table.sum(1), truth_ids=truth_ids, segment_ids=segment_ids[kept])


def _unique_inverse(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids in [N], ascending, and each pixel's index into them: `numpy.unique` without its sort."""
    if labels.dtype not in (np.uint8, np.uint16):
        ids, indices = np.unique(labels, return_inverse=True)
        return ids, indices
    counts = np.bincount(labels)
    ids = np.flatnonzero(counts)
    index_of = np.zeros(len(counts), np.int64)
    index_of[ids] = np.arange(len(ids))
    return ids, index_of[labels]


def covering(table: Overlap) -> float:
    """Return the segmentation covering of the ground truth: the best IoU of each region, weighted by its area.

    Source: Arbelaez, Maire, Fowlkes and Malik, PAMI 2011, section 2.3.

    Returns:
        0 to 1; NaN if the ground truth ignores every pixel.
    """
    if not len(table.truth_area):
        return float("nan")
    return float(table.best_iou @ table.truth_area / table.truth_area.sum())


def mean_best_iou(table: Overlap) -> float:
    """Return the mean over regions of the best IoU, 0 to 1; NaN if the ground truth ignores every pixel."""
    return float(table.best_iou.mean()) if len(table.truth_area) else float("nan")


def variation_of_information(table: Overlap) -> float:
    """Return H(truth | prediction) + H(prediction | truth), where pixels that the prediction ignores form a segment.

    Sources: Meila, 2005; Arbelaez and others, PAMI 2011, section 2.3.

    Returns:
        Bits: 0 for equal partitions, at most log2 of the number of pixels; NaN if the ground truth ignores every pixel.
    """
    missed = table.truth_area - table.shared.sum(1)
    joint = np.column_stack([table.shared, missed]) / max(table.truth_area.sum(), 1)
    if not joint.any():
        return float("nan")
    return float(2 * _entropy(joint) - _entropy(joint.sum(0)) - _entropy(joint.sum(1)))


def _entropy(shares: np.ndarray) -> float:
    """Return the entropy of a distribution in bits."""
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


def splits_and_merges(table: Overlap) -> tuple[int, int]:
    """Count the over-segmented and the under-segmented ground-truth regions, by Hoover's definitions.

    A region is split if two or more segments lie in it with at least 80 % of their area each and together hold at least
    80 % of the region. Regions are merged if one segment holds at least 80 % of each of two or more of them and lies in
    them with at least 80 % of its area.
    """
    segment_area = table.shared.sum(0)
    inside = (table.shared >= HOOVER_SHARE * segment_area) & (segment_area > 0)
    is_split = (inside.sum(1) > 1) & ((table.shared * inside).sum(1) >= HOOVER_SHARE * table.truth_area)
    held = table.shared >= HOOVER_SHARE * table.truth_area[:, None]
    merges = (held.sum(0) > 1) & ((table.shared * held).sum(0) >= HOOVER_SHARE * segment_area)
    return int(is_split.sum()), int(held[:, merges].any(1).sum())


@dataclass(frozen=True, kw_only=True)
class Matching:
    """A one-to-one assignment of segments to ground-truth regions.

    Attributes:
        miou: Mean IoU over the regions, 0 to 1; a region without a segment counts as 0.
        accuracy: Share of counted pixels that lie in their region's segment, 0 to 1.
        segment_of: Segment id of each matched region id.
    """

    miou: float
    accuracy: float
    segment_of: dict[int, int]


def match_per_image(table: Overlap) -> Matching:
    """Assign segments to regions for this image alone, with the most shared pixels (Hungarian algorithm).

    This is the protocol of DiffSeg's released evaluation. It is more generous than one assignment for a whole dataset,
    so scores of the two protocols must not be compared.

    Returns:
        The assignment; its scores are NaN if the ground truth ignores every pixel.
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
