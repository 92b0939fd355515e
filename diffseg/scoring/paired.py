"""Differences between two segmentations of the same images, with bootstrap intervals over the images.

Both scores of an image enter or leave a resample together. What the images have in common, such as that some are harder
than others, therefore cancels out, and the interval of the difference is narrower than those of the two scores suggest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from diffseg.scoring.bootstrap import Interval, bootstrap
from diffseg.scoring.class_counts import counts_by_class, scores_of_counts
from diffseg.scoring.scores import (
    CLASS_SCORES,
    IMAGE_SCORES,
    MAX_CLASSES,
    ROUNDS,
    ImageScores,
)


class PairedScore(NamedTuple):
    """A score of two segmentations over the same images.

    Attributes:
        first: The score of the first segmentation.
        second: The score of the second segmentation.
        difference: The second score minus the first.
    """

    first: Interval
    second: Interval
    difference: Interval


def paired_scores(
    first: Sequence[ImageScores], second: Sequence[ImageScores], classes: Sequence[int] | None
) -> dict[str, PairedScore]:
    """Compare two segmentations by `IMAGE_SCORES`, and by the `CLASS_SCORES` that match segments image by image.

    Args:
        first: Scores of the images by the first segmentation.
        second: Scores of the same images by the second one, in the same order and against the same ground truth.
        classes: Ids of the ground truth's classes. None takes the ids that occur. With more than `MAX_CLASSES` of them,
            or with several annotations of an image, no score counts by class.

    Returns:
        The scores by name; empty if no image has a score.
    """
    scored = [pair for pair in zip(first, second, strict=True) if not np.isnan(pair[0].values["covering"])]
    if not scored:
        return {}
    sides = [[pair[0] for pair in scored], [pair[1] for pair in scored]]
    values = [np.array([[image.values[name] for name in IMAGE_SCORES] for image in side]) for side in sides]
    result = _compare(values, lambda sums: sums / len(scored), IMAGE_SCORES)
    tables = [[image.table for image in side if image.table is not None] for side in sides]
    if min(map(len, tables)) < len(scored):
        return result
    if classes is None:
        classes = np.unique(np.concatenate([table.truth_ids for table in tables[0]])).tolist()
    if len(classes) > MAX_CLASSES:
        return result
    counts = [counts_by_class(side, classes) for side in tables]
    return result | _compare(counts, scores_of_counts, CLASS_SCORES[:2])


def _compare(
    features: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray], names: Sequence[str]
) -> dict[str, PairedScore]:
    """Return the scores of two sides, float64 [N, F] each, and their differences on the same resamples."""

    def both(sums: np.ndarray) -> np.ndarray:
        first, second = map(statistic, np.split(sums, 2))
        return np.concatenate([first, second, second - first])

    intervals = bootstrap(np.hstack(features), both, rounds=ROUNDS)
    count = len(names)
    return {name: PairedScore(*intervals[index::count]) for index, name in enumerate(names)}
