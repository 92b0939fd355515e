"""Find the name score below which a segment should be background, on a few images with ground truth.

Axes: N images, T thresholds, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffseg.scoring.bootstrap import Interval, bootstrap
from diffseg.scoring.class_counts import scores_of_counts
from diffseg.scoring.overlap import Overlap
from diffseg.scoring.scores import named_counts
from diffseg.segmentation import BACKGROUND
from pipeline.evaluation.score import THIS_RUN, ScoredImage

CANDIDATES = 20
"""Number of thresholds besides 0. They divide the scores of the run's segments into parts of equal size."""


@dataclass(frozen=True, kw_only=True)
class ThresholdTuning:
    """The best threshold, and what it gains.

    Attributes:
        thresholds: The candidates, ascending; the first is 0, which leaves the run as it is.
        best: Index of the threshold with the highest mIoU over the data set.
        means: mIoU at each threshold, with its interval.
        gain: Expected gain over the run as it is: each image is counted at the threshold that is best on the others.
    """

    thresholds: Sequence[float]
    best: int
    means: Sequence[Interval]
    gain: Interval


def tune_threshold(images: Sequence[ScoredImage], class_of_name: Mapping[str, int]) -> ThresholdTuning:
    """Choose the threshold with the highest mIoU of names, with leave-one-out cross-validation.

    Args:
        images: Images of a run with names, each with one annotation; at least 2.
        class_of_name: Ground-truth class id by name; segments with other names count as wrong or missed.
    """
    thresholds = _candidates(images)
    classes = sorted(set(class_of_name.values()))
    tables = [[_classes_of_segments(image, class_of_name, below) for image in images] for below in thresholds]
    counts = np.stack([named_counts(of_threshold, classes) for of_threshold in tables], axis=1)
    counts = counts.reshape(len(images), len(thresholds), -1)
    total = counts.sum(axis=0)
    left_out = np.array([np.argmax([_miou(others) for others in total - own]) for own in counts])
    pairs = np.concatenate([counts[np.arange(len(images)), left_out], counts[:, 0]], axis=1)
    half = counts.shape[2]
    (gain,) = bootstrap(pairs, lambda sums: np.array([_miou(sums[:half]) - _miou(sums[half:])]))
    means = [bootstrap(of_threshold, lambda sums: np.array([_miou(sums)]))[0] for of_threshold in counts.swapaxes(0, 1)]
    best = int(np.argmax([mean.mean for mean in means]))
    return ThresholdTuning(thresholds=thresholds, best=best, means=means, gain=gain)


def _miou(counts: np.ndarray) -> float:
    return float(scores_of_counts(counts)[1])


def _candidates(images: Sequence[ScoredImage]) -> list[float]:
    """Return 0 and quantiles of the name scores, ascending."""
    scores = [segment.score for image in images for segment in image.names if _is_named(segment.name)]
    if not scores:
        return [0.0]
    quantiles = np.quantile(scores, np.linspace(0, 1, CANDIDATES + 1)[1:], method="inverted_cdf")
    return sorted({0.0, *(float(f"{value:.3g}") for value in quantiles)})


def _is_named(name: str | None) -> bool:
    return name is not None and name != BACKGROUND


def _classes_of_segments(image: ScoredImage, class_of_name: Mapping[str, int], below: float) -> Overlap:
    """Return the overlap of an image with classes instead of segments; segments without a class are left out."""
    table = image.scores[THIS_RUN].table
    assert table is not None
    names = {
        segment.id: BACKGROUND if _is_named(segment.name) and segment.score < below else segment.name
        for segment in image.names
    }
    class_of = np.array([class_of_name.get(names.get(int(number)) or "", -1) for number in table.segment_ids], np.int64)
    classes = np.unique(class_of[class_of >= 0])
    shared = table.shared @ (class_of[:, None] == classes)
    return replace(table, shared=shared, segment_ids=classes)
