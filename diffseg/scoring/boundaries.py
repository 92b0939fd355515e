"""Boundary F: how well the borders of two label maps agree, whatever their regions are.

A border pixel is matched if the other map has a border pixel within a distance (Csurka and others, BMVC 2013, "BF
score"; DAVIS's F measure, CVPR 2016, with a distance in pixels). BSDS's own benchmark instead matches border pixels one
to one, which costs seconds per image; its scores are not comparable.

Axes: H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from diffseg.segmentation import borders

__all__ = ["TOLERANCE", "BoundaryScore", "boundary_score"]

TOLERANCE = 2
"""Largest Euclidean distance between matched border pixels, in pixels."""

BAND = 4
"""Largest depth, in pixels, of a band of ignored pixels around objects, as in PASCAL VOC; a band holds one border."""


@dataclass(frozen=True, kw_only=True)
class BoundaryScore:
    """Agreement of predicted and true borders, 0 to 1.

    A map without borders has none that are wrong, so its share is 1. All values are NaN if the ground truth ignores
    every pixel.

    Attributes:
        precision: Share of predicted border pixels near a true border pixel.
        recall: Share of true border pixels near a predicted border pixel.
    """

    precision: float
    recall: float

    @property
    def f(self) -> float:
        """Harmonic mean of precision and recall; 0 if both are 0."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def boundary_score(
    truth: np.ndarray, prediction: np.ndarray, *, ignore_truth: int | None = None, tolerance: int = TOLERANCE
) -> BoundaryScore:
    """Compare the border pixels of two maps, whose right or lower neighbour has another label.

    Args:
        truth: Ground truth, integers [H, W].
        prediction: Label map, integers [H, W]. Pixels that it ignores form one more segment.
        ignore_truth: Id of ignored ground-truth pixels. In bands at most 8 pixels wide, each takes the label of the
            nearest pixel that has one, so that the border lies in the middle of the band. In and around wider areas,
            borders are not counted.
        tolerance: Largest distance between matched border pixels, in pixels.

    Raises:
        ValueError: The shapes differ.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape}, prediction {prediction.shape}; expected the same")
    counts = None
    if ignore_truth is not None and (truth == ignore_truth).all():
        return BoundaryScore(precision=float("nan"), recall=float("nan"))
    if ignore_truth is not None and (truth == ignore_truth).any():
        truth, counts = _fill_void(truth, truth == ignore_truth, tolerance)
    true_borders, predicted_borders = borders(truth), borders(prediction)
    reach = _disk(tolerance)
    near_true, near_predicted = (ndimage.binary_dilation(edge, reach) for edge in (true_borders, predicted_borders))
    if counts is not None:
        true_borders, predicted_borders = true_borders & counts, predicted_borders & counts
    return BoundaryScore(precision=_share(near_true, predicted_borders), recall=_share(near_predicted, true_borders))


def _fill_void(truth: np.ndarray, void: np.ndarray, tolerance: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill ignored pixels with the nearest labels; also return where borders are counted, bool [H, W]."""
    depth, nearest = ndimage.distance_transform_edt(void, return_indices=True)
    deep = depth > BAND
    counts = np.full(truth.shape, True)
    if deep.any():
        counts = ndimage.distance_transform_edt(~deep) > BAND + 1 + tolerance
    return truth[tuple(nearest)], counts


def _share(near: np.ndarray, edge: np.ndarray) -> float:
    """Return the share of border pixels that lie near a border of the other map; 1 without border pixels."""
    return float(near[edge].mean()) if edge.any() else 1.0


def _disk(radius: int) -> np.ndarray:
    """Return a disk as bool [2 · radius + 1, 2 · radius + 1]."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return y * y + x * x <= radius * radius
