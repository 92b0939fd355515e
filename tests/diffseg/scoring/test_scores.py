"""Scores of images and datasets agree with results computed by hand and with loops over pixels and assignments."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from diffseg.scoring.scores import CLASS_SCORES, IMAGE_SCORES, ImageScores, pool_scores, score_image
from diffseg.scoring.view import View
from diffseg.segmentation import IGNORE


def scored(*pairs: tuple[list[int], list[int]]) -> list[ImageScores]:
    maps = [(np.array([t], np.uint16), np.array([p], np.uint16)) for t, p in pairs]
    return [score_image([truth], prediction, View()) for truth, prediction in maps]


def test_scores_of_an_image_agree_with_hand_computation() -> None:
    # regions of 6 and 4 pixels; segments share 5 + 1 and 2 + 2 with them
    (image,) = scored(([0] * 6 + [1] * 4, [7] * 5 + [8] + [7] * 2 + [8] * 2))
    assert image.values["accuracy"] == 0.7
    assert image.values["miou"] == pytest.approx((5 / 8 + 2 / 5) / 2)
    assert image.values["best_iou"] == pytest.approx((5 / 8 + 2 / 5) / 2)
    assert image.values["covering"] == pytest.approx((6 * 5 / 8 + 4 * 2 / 5) / 10)
    assert (image.regions, image.segments, image.missed) == (2, 2, 0)


def test_class_scores_agree_with_hand_computation_by_the_rules_of_the_released_code() -> None:
    # Image 1: class 0 takes segment 0 (3 of 4 pixels), class 1 segment 1; image 2 names its segments the other way.
    images = scored(([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]), ([0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]))
    pooled = pool_scores(images, classes=[0, 1])
    # class 0: 3 + 2 hit, 1 missed; class 1: 2 + 4 hit, 1 wrong
    assert pooled["class_accuracy"].mean == pytest.approx(11 / 12)
    assert pooled["class_miou"].mean == pytest.approx((5 / 6 + 6 / 7) / 2)
    # One assignment for both images: class 0 and id 0 share 3, class 1 and id 1 share 2; or 1 + 2 and 0 + 4.
    assert pooled["dataset_accuracy"].mean == pytest.approx(7 / 12)
    # class 0 with id 1: 3 of 6 + 5 - 3; class 1 with id 0: 4 of 6 + 7 - 4
    assert pooled["dataset_miou"].mean == pytest.approx((3 / 8 + 4 / 9) / 2)
    assert pooled["miou"].mean == pytest.approx(((3 / 4 + 2 / 3) / 2 + 1) / 2)


def test_a_segment_that_no_class_takes_is_assigned_to_an_absent_class() -> None:
    # With two classes in all, only the absent class 1 can take the second segment.
    pooled = pool_scores(scored(([0, 0, 0, 0], [0, 0, 0, 1])), classes=[0, 1])
    assert pooled["class_accuracy"].mean == 0.75
    assert pooled["class_miou"].mean == pytest.approx((0.75 + 0) / 2)
    assert pool_scores(scored(([0, 0, 0, 0], [0, 0, 0, 1])), classes=None)["class_miou"].mean == 0.75


def scores_per_image(images: list[tuple[np.ndarray, np.ndarray]], count: int) -> tuple[float, float]:
    """Accumulate as google/diffseg does, by loops: the best of all assignments, with pixels counted by class."""
    hit, wrong, missed = np.zeros(count), np.zeros(count), np.zeros(count)
    for truth, prediction in images:
        options = []
        for columns in itertools.permutations(range(count)):
            options.append((sum(((truth == c) & (prediction == k)).sum() for c, k in enumerate(columns)), columns))
        best = max(options, key=lambda option: option[0])[1]
        assert sum(total == max(options)[0] for total, _ in options) == 1, "ties would leave the answer open"
        for c, k in enumerate(best):
            hit[c] += ((truth == c) & (prediction == k)).sum()
            wrong[c] += ((truth != c) & (prediction == k)).sum()
            missed[c] += ((truth == c) & (prediction != k)).sum()
    return hit.sum() / (hit + missed).sum(), np.mean(hit / (hit + wrong + missed))


def scores_per_dataset(images: list[tuple[np.ndarray, np.ndarray]], count: int, ids: int) -> tuple[float, float]:
    """Compute accuracy and mIoU with the best assignment for all images together."""
    truth, prediction = (np.concatenate([pair[side].ravel() for pair in images]) for side in (0, 1))
    best: tuple[float, float] = (0, 0)
    for columns in itertools.permutations(range(ids), count):
        hits = [((truth == c) & (prediction == k)) for c, k in enumerate(columns)]
        unions = [((truth == c) | (prediction == k)) for c, k in enumerate(columns)]
        miou = np.mean([h.sum() / u.sum() for h, u in zip(hits, unions, strict=True)])
        best = max(best, (sum(h.sum() for h in hits) / truth.size, miou))
    return best


@pytest.mark.parametrize("seed", range(2))
def test_both_matchings_agree_with_loops_over_all_assignments(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [(rng.integers(0, 4, (23, 31)), rng.integers(0, 4, (23, 31))) for _ in range(3)]
    images = [(t.astype(np.uint16), np.where(rng.random(t.shape) < 0.5, t, p).astype(np.uint16)) for t, p in images]
    pooled = pool_scores([score_image([t], p, View()) for t, p in images], classes=range(4))
    class_scores = pooled["class_accuracy"].mean, pooled["class_miou"].mean
    assert class_scores == pytest.approx(scores_per_image(images, 4))
    more = [(t, np.where(t == 2, p + 2, p).astype(np.uint16)) for t, p in images]  # six ids for four classes
    pooled = pool_scores([score_image([t], p, View()) for t, p in more], classes=range(4))
    assert (pooled["dataset_accuracy"].mean, pooled["dataset_miou"].mean) == pytest.approx(
        scores_per_dataset(more, 4, 6)
    )


def test_pixels_that_the_prediction_ignores_are_missed_in_every_score() -> None:
    images = scored(([0, 0, 1, 1], [0, 0, 1, IGNORE]))
    pooled = pool_scores(images, classes=[0, 1])
    assert images[0].missed == 0.25
    for name in ("accuracy", "class_accuracy", "dataset_accuracy"):
        assert pooled[name].mean == 0.75, name
    for name in ("miou", "class_miou", "dataset_miou"):
        assert pooled[name].mean == 0.75, name


def test_pixels_that_the_ground_truth_ignores_are_not_counted_and_an_image_of_only_these_is_left_out() -> None:
    images = scored(([0, 0, IGNORE, IGNORE], [5, 5, 6, 7]), ([IGNORE] * 4, [1, 2, 3, 4]))
    assert np.isnan(images[1].values["covering"])
    pooled = pool_scores(images, classes=[0])
    assert pooled["covering"].count == pooled["class_miou"].count == 1
    assert all(pooled[name].mean == 1 for name in ("accuracy", "miou", "covering", "class_miou", "dataset_miou"))
    assert pool_scores(images[1:], classes=[0]) == {}


def test_scores_of_several_annotations_are_averaged_and_have_no_class_scores() -> None:
    halves, quarters = np.repeat([[0, 1]], 4, 1).astype(np.uint16), np.repeat([[0, 1, 2, 3]], 2, 1).astype(np.uint16)
    several = score_image([halves, quarters], halves, View())
    assert several.values["covering"] == (1 + 0.5) / 2
    assert several.values["vi"] == (0 + 1) / 2
    assert several.values["merged"] == (0 + 4) / 2
    assert set(pool_scores([several], classes=None)) == set(IMAGE_SCORES)
    single = score_image([halves], halves, View())
    assert set(pool_scores([single], classes=None)) == {*IMAGE_SCORES, *CLASS_SCORES}


def test_too_many_ids_are_not_classes() -> None:
    regions = np.arange(300, dtype=np.uint16)[None]
    assert set(pool_scores([score_image([regions], regions, View())], classes=None)) == set(IMAGE_SCORES)


def test_both_maps_get_the_same_view_and_must_have_the_same_size() -> None:
    truth = np.zeros((4, 8), np.uint16)
    truth[:, 6:] = 1  # outside of the centre square
    assert score_image([truth], np.zeros_like(truth), View(crop="centre", size=8)).values["covering"] == 1
    with pytest.raises(ValueError, match=r"\(4, 8\).*\(8, 4\)"):
        score_image([truth], truth.T, View(size=4))


def test_intervals_are_positive_and_shrink_with_more_images() -> None:
    rng = np.random.default_rng(0)
    images = []
    for _ in range(200):
        truth = rng.integers(0, 3, (8, 8)).astype(np.uint16)
        prediction = np.where(rng.random(truth.shape) < rng.uniform(0.5, 1), truth, 3).astype(np.uint16)
        images.append(score_image([truth], prediction, View()))
    few, many = pool_scores(images[:20], classes=None), pool_scores(images, classes=None)
    for name in ("class_miou", "dataset_miou", "miou"):
        assert 0 < many[name].half_width < few[name].half_width < 0.2, name
    assert pool_scores(images, classes=None) == many
