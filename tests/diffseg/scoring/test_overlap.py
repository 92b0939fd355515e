"""Scores agree with brute force over masks, and with cases computed by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffseg.scoring.overlap import (
    covering,
    match_per_image,
    mean_best_iou,
    overlap,
    splits_and_merges,
    variation_of_information,
)

LABELS = hnp.arrays(np.uint16, (5, 7), elements=st.integers(0, 4))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def best_ious(truth: np.ndarray, prediction: np.ndarray, counted: np.ndarray, ignore: int) -> dict[int, float]:
    """Return the best IoU of each ground-truth region, from masks."""
    segments = [prediction == k for k in np.unique(prediction) if k != ignore]
    return {
        int(t): max((iou((truth == t) & counted, s & counted) for s in segments), default=0.0)
        for t in np.unique(truth[counted])
    }


@settings(deadline=None)  # a busy machine must not fail the test
@given(truth=LABELS, prediction=LABELS)
def test_scores_agree_with_brute_force_with_both_ignored_ids(truth: np.ndarray, prediction: np.ndarray) -> None:
    counted = truth != 4
    if not counted.any():
        return
    table = overlap(truth, prediction, ignore_truth=4, ignore_prediction=3)
    best = best_ious(truth, prediction, counted, ignore=3)
    areas = {t: int(((truth == t) & counted).sum()) for t in best}
    assert covering(table) == pytest.approx(sum(best[t] * areas[t] for t in best) / counted.sum())
    assert mean_best_iou(table) == pytest.approx(np.mean(list(best.values())))


@settings(deadline=None)
@given(truth=LABELS, prediction=LABELS)
def test_the_matching_is_the_best_of_all_assignments(truth: np.ndarray, prediction: np.ndarray) -> None:
    table = overlap(truth, prediction)
    shared = table.shared if table.shared.shape[0] <= table.shared.shape[1] else table.shared.T
    best = max(
        sum(int(shared[row, column]) for row, column in enumerate(columns))
        for columns in itertools.permutations(range(shared.shape[1]), shared.shape[0])
    )
    matching = match_per_image(table)
    assert matching.accuracy == pytest.approx(best / truth.size)
    total = sum(iou(truth == t, prediction == k) for t, k in matching.segment_of.items())
    assert matching.miou == pytest.approx(total / len(np.unique(truth)))
    assert len(set(matching.segment_of.values())) == len(matching.segment_of)


@settings(deadline=None)
@given(labels=LABELS, data=st.data())
def test_scores_do_not_depend_on_ids(labels: np.ndarray, data: st.DataObject) -> None:
    renamed = np.array(data.draw(st.permutations([7, 100, 3, 65534, 12])), np.uint16)[labels]
    table = overlap(labels, renamed)
    assert (
        covering(table) == mean_best_iou(table) == match_per_image(table).miou == match_per_image(table).accuracy == 1
    )


def test_one_segment_over_two_regions_scores_half() -> None:
    truth = np.repeat(np.array([[0, 1]], np.uint8), 4, axis=0)
    table = overlap(truth, np.zeros_like(truth))
    assert covering(table) == 0.5
    assert match_per_image(table).miou == 0.25
    assert match_per_image(table).accuracy == 0.5


def test_a_region_that_no_segment_touches_is_not_matched() -> None:
    matching = match_per_image(overlap(np.array([[0, 0, 1, 1]]), np.array([[5, 6, 65535, 65535]])))
    assert list(matching.segment_of) == [0]
    assert matching.miou == 0.25


def test_pixels_that_the_prediction_ignores_count_as_missed() -> None:
    truth = np.zeros((1, 4), np.int64)
    prediction = np.array([[0, 0, 0, 65535]], np.uint16)
    table = overlap(truth, prediction)
    assert covering(table) == match_per_image(table).miou == match_per_image(table).accuracy == 0.75
    assert covering(overlap(truth, prediction, ignore_prediction=None)) == 0.75
    assert covering(overlap(truth, np.full_like(prediction, 65535))) == 0


def test_pixels_that_the_ground_truth_ignores_are_not_counted() -> None:
    truth = np.array([[0, 0, 255, 255]], np.uint8)
    prediction = np.array([[1, 1, 1, 2]], np.uint8)
    assert covering(overlap(truth, prediction, ignore_truth=255)) == 1
    assert covering(overlap(truth, prediction)) < 1


def test_scores_are_nan_if_the_ground_truth_ignores_every_pixel() -> None:
    table = overlap(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), ignore_truth=255)
    scores = [covering(table), mean_best_iou(table), match_per_image(table).miou, match_per_image(table).accuracy]
    assert np.isnan(scores).all()


def test_maps_of_other_shapes_or_of_floats_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        overlap(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
    with pytest.raises(ValueError, match="float"):
        overlap(np.zeros((2, 2), np.uint8), np.zeros((2, 2)))


@settings(deadline=None)
@given(truth=LABELS, prediction=LABELS)
def test_tables_and_variation_of_information_agree_with_scikit_image(truth: np.ndarray, prediction: np.ndarray) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    table = overlap(truth, prediction, ignore_prediction=None)
    dense = metrics.contingency_table(truth, prediction).toarray()
    assert (dense[np.ix_(table.truth_ids, table.segment_ids)] == table.shared).all()
    expected = sum(metrics.variation_of_information(truth, prediction))
    assert variation_of_information(table) == pytest.approx(expected, abs=1e-12)


def test_variation_of_information_by_hand() -> None:
    halves, whole = np.array([[0, 0, 1, 1]]), np.zeros((1, 4), int)
    assert variation_of_information(overlap(halves, halves)) == 0
    assert variation_of_information(overlap(halves, whole)) == variation_of_information(overlap(whole, halves)) == 1
    crossed = variation_of_information(overlap(halves, np.array([[0, 1, 0, 1]])))
    assert crossed == 2
    missed = overlap(whole, np.array([[0, 0, 65535, 65535]]))
    assert variation_of_information(missed) == 1
    assert np.isnan(variation_of_information(overlap(whole, whole, ignore_truth=0)))


def test_splits_and_merges_by_hand() -> None:
    truth = np.repeat([0, 1, 2], 10)[None]
    assert splits_and_merges(overlap(truth, truth)) == (0, 0)
    split = truth.copy()
    split[0, 4:10] = 7  # region 0 into 4 and 6 pixels
    assert splits_and_merges(overlap(truth, split)) == (1, 0)
    merged = np.where(truth == 2, 1, truth)  # regions 1 and 2 into one segment
    assert splits_and_merges(overlap(truth, merged)) == (0, 2)
    assert splits_and_merges(overlap(truth, np.where(merged == 1, 1, split))) == (1, 2)
    loose = split.copy()
    loose[0, 3:10], loose[0, 10:15] = (
        7,
        7,
    )  # 5 of the 12 pixels of this segment lie in another region, so it does not split region 0
    assert splits_and_merges(overlap(truth, loose)) == (0, 0)


@settings(deadline=None)
@given(truth=LABELS, prediction=LABELS)
def test_ids_of_every_integer_type_give_the_same_table(truth: np.ndarray, prediction: np.ndarray) -> None:
    small, large = overlap(truth, prediction), overlap(truth.astype(np.int64) - 2, prediction.astype(np.uint32))
    assert (small.shared == large.shared).all()
    assert (small.truth_ids == large.truth_ids + 2).all()
