"""Boundary F: how well the borders of two label maps agree, whatever lies between them.

A border pixel counts as found where the other map has one within a distance (Csurka and others, BMVC 2013, "BF score";
DAVIS's F measure, CVPR 2016, with a distance in pixels). BSDS's own benchmark matches border pixels one to one instead,
which costs seconds an image; its figures are not comparable.

Axes: H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from diffseg.segmentation import borders

__all__ = ["TOLERANCE", "BoundaryScore", "boundary_score"]

TOLERANCE = 2
"""Pixels, Euclidean."""

BAND = 4
"""Void that is nowhere deeper, in pixels, is a band around objects, as PASCAL VOC has it, and holds one border."""


@dataclass(frozen=True, kw_only=True)
class BoundaryScore:
    """precision: share of predicted border pixels near a true one. recall: the reverse. f: their harmonic mean.

    All in [0, 1]. A side without any border has nothing wrong: its share is 1. NaN where the truth ignores every pixel.
    """

    precision: float
    recall: float

    @property
    def f(self) -> float:
        """2 · precision · recall / (precision + recall), 0 where both are."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def boundary_score(
    truth: np.ndarray, prediction: np.ndarray, *, ignore_truth: int | None = None, tolerance: int = TOLERANCE
) -> BoundaryScore:
    """Compare borders: pixels whose right or lower neighbour has another label.

    Args:
        truth, prediction: integer [H, W]. What the prediction ignores is one more segment.
        ignore_truth: id of true pixels that say nothing. In bands at most 8 pixels wide each takes the label of the
            nearest pixel that has one, and so a border lies in the middle; in and around wider areas no border counts.
        tolerance: pixels.

    Raises:
        ValueError: where shapes differ.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape}, prediction {prediction.shape}; expected the same")
    counts = None
    if ignore_truth is not None and (truth == ignore_truth).all():
        return BoundaryScore(precision=float("nan"), recall=float("nan"))
    if ignore_truth is not None and (truth == ignore_truth).any():
        truth, counts = _without_void(truth, truth == ignore_truth, tolerance)
    true_borders, found_borders = borders(truth), borders(prediction)
    reach = _disk(tolerance)
    near_true, near_found = (ndimage.binary_dilation(edge, reach) for edge in (true_borders, found_borders))
    if counts is not None:
        true_borders, found_borders = true_borders & counts, found_borders & counts
    return BoundaryScore(precision=_share(near_true, found_borders), recall=_share(near_found, true_borders))


def _without_void(truth: np.ndarray, void: np.ndarray, tolerance: int) -> tuple[np.ndarray, np.ndarray]:
    """The truth with its void filled from the nearest labels; bool [H, W]: where borders count."""
    depth, nearest = ndimage.distance_transform_edt(void, return_indices=True)
    deep = depth > BAND
    counts = np.full(truth.shape, True)
    if deep.any():
        counts = ndimage.distance_transform_edt(~deep) > BAND + 1 + tolerance
    return truth[tuple(nearest)], counts


def _share(near: np.ndarray, edge: np.ndarray) -> float:
    return float(near[edge].mean()) if edge.any() else 1.0


def _disk(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return y * y + x * x <= radius * radius
