"""Paired differences between two segmentations of the same images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from diffseg.scoring.paired import paired_scores
from diffseg.scoring.scores import ImageScores, score_image
from diffseg.scoring.view import View
from diffseg.segmentation import IGNORE


def scores(truths: np.ndarray, predictions: np.ndarray) -> list[ImageScores]:
    return [score_image([t], p, View()) for t, p in zip(truths, predictions, strict=True)]


def halves(widths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return maps of two regions, uint16 [N, 1, 20], whose border differs from image to image."""
    return np.array([[[int(x >= width) for x in range(20)]] for width in widths], np.uint16)


def test_a_constant_improvement_has_an_interval_of_zero_although_the_images_differ() -> None:
    borders, wrong_pixels = np.array([4, 6, 8, 10, 12]), np.array([0, 2, 3, 4, 5])
    truths, better, worse = map(halves, (borders, borders + wrong_pixels, borders + wrong_pixels + 1))
    result = paired_scores(scores(truths, worse), scores(truths, better), classes=[0, 1])
    first, second, difference = result["accuracy"]
    assert difference.mean == pytest.approx(1 / 20)
    assert difference.half_width == pytest.approx(0, abs=1e-9)
    assert min(first.half_width, second.half_width) > 0.02
    assert difference.mean == pytest.approx(second.mean - first.mean)
    assert result["class_accuracy"].difference.mean == pytest.approx(1 / 20)


def test_the_interval_is_that_of_resampled_differences() -> None:
    rng = np.random.default_rng(0)
    truths, first, second = (rng.integers(0, 2, (30, 1, 20)).astype(np.uint16) for _ in range(3))
    one, two = scores(truths, first), scores(truths, second)
    difference = paired_scores(one, two, classes=[0, 1])["covering"].difference
    gaps = np.array([b.values["covering"] - a.values["covering"] for a, b in zip(one, two, strict=True)])
    resampled = [gaps[rng.integers(30, size=30)].mean() for _ in range(4000)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert difference.mean == pytest.approx(gaps.mean())
    assert difference.half_width == pytest.approx((high - low) / 2, rel=0.15)


def test_images_whose_ground_truth_is_ignored_are_left_out() -> None:
    truths = halves([4, 6])
    truths[1] = IGNORE
    maps = scores(truths, halves([4, 6]))
    result = paired_scores(maps, maps, classes=None)
    assert result["covering"].difference.count == 1
    assert set(paired_scores(maps[1:], maps[1:], classes=None)) == set()
