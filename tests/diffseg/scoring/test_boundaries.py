"""Boundary F agrees with brute force over all pairs of border pixels."""

from __future__ import annotations

import numpy as np
import pytest

from diffseg.scoring.boundaries import boundary_score
from diffseg.segmentation import IGNORE


def precision_and_recall(truth: np.ndarray, prediction: np.ndarray, tolerance: int) -> tuple[float, float]:
    """Compute both by comparing every pair of border pixels."""

    def border(labels: np.ndarray) -> list[tuple[int, int]]:
        height, width = labels.shape
        return [
            (y, x)
            for y in range(height)
            for x in range(width)
            if (x + 1 < width and labels[y, x] != labels[y, x + 1])
            or (y + 1 < height and labels[y, x] != labels[y + 1, x])
        ]

    def share(pixels: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        if not pixels:
            return 1.0
        hits = [any((y - b) ** 2 + (x - a) ** 2 <= tolerance**2 for b, a in others) for y, x in pixels]
        return sum(hits) / len(pixels)

    true, predicted = border(truth), border(prediction)
    return share(predicted, true), share(true, predicted)


@pytest.mark.parametrize("tolerance", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_precision_and_recall_agree_with_brute_force(seed: int, tolerance: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, 3, (3, 4)), np.ones((7, 6), int))
    prediction = np.kron(rng.integers(0, 3, (5, 3)), np.ones((4, 8), int))
    prediction = np.pad(prediction, ((0, 1), (0, 0)), mode="edge")
    score = boundary_score(truth, prediction, tolerance=tolerance)
    assert (score.precision, score.recall) == pytest.approx(precision_and_recall(truth, prediction, tolerance))


def halves(at: int, width: int = 40) -> np.ndarray:
    return np.broadcast_to((np.arange(width) >= at).astype(np.uint16), (20, width)).copy()


def test_a_border_two_pixels_off_is_matched_and_one_three_pixels_off_is_not() -> None:
    assert boundary_score(halves(20), halves(22)).f == 1
    score = boundary_score(halves(20), halves(23))
    assert (score.precision, score.recall, score.f) == (0, 0, 0)


def test_a_map_without_borders_has_no_wrong_ones() -> None:
    nothing = np.zeros((20, 40), np.uint16)
    assert boundary_score(nothing, nothing).f == 1
    extra = boundary_score(nothing, halves(20))
    assert (extra.precision, extra.recall, extra.f) == (0, 1, 0)
    missed = boundary_score(halves(20), nothing)
    assert (missed.precision, missed.recall, missed.f) == (1, 0, 0)


def test_a_band_of_ignored_pixels_holds_one_border_in_its_middle() -> None:
    truth = halves(20)
    truth[:, 17:23] = IGNORE
    assert boundary_score(truth, halves(20), ignore_truth=IGNORE).f == 1
    assert boundary_score(truth, halves(24), ignore_truth=IGNORE).f == 0


def test_borders_in_and_around_a_wide_ignored_area_are_not_counted() -> None:
    truth = halves(5)
    truth[:, 20:34] = IGNORE
    prediction = halves(5)
    for column in (18, 27, 36):  # at both sides of the ignored area and inside it
        prediction[:, column:] += 1
    assert boundary_score(truth, prediction, ignore_truth=IGNORE).f == 1
    prediction[:, 12:] += 1
    assert boundary_score(truth, prediction, ignore_truth=IGNORE).precision == 0.5


def test_the_score_is_nan_if_all_pixels_are_ignored() -> None:
    truth = np.full((4, 4), IGNORE, np.uint16)
    assert np.isnan(boundary_score(truth, truth, ignore_truth=IGNORE).f)
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        boundary_score(truth, truth[:2])
