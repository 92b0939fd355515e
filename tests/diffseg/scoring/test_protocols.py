"""Published protocols against plain reimplementations, pixel by pixel as their code counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from diffseg.scoring.overlap import overlap
from diffseg.scoring.protocols import Protocol, protocol_scores
from diffseg.scoring.scores import score_image
from diffseg.scoring.view import View
from diffseg.segmentation import IGNORE

Maps = list[tuple[np.ndarray, np.ndarray]]
"""Ground truth, with void as 65535, and predicted ids of each image."""


def scored(maps: Maps, protocol: Protocol) -> tuple[float, float]:
    """Return accuracy and mIoU by our implementation."""
    tables = [score_image([truth], prediction, protocol.view).table for truth, prediction in maps]
    accuracy, miou = protocol_scores([table for table in tables if table is not None], protocol)
    return accuracy.mean, miou.mean


def random_maps(seed: int, classes: int, ids: tuple[int, ...], *, void: bool = True) -> Maps:
    """Draw blocks of classes, and predictions that follow them in part; class 1 never occurs."""
    rng = np.random.default_rng(seed)
    maps = []
    for _ in range(3):
        blocks = rng.integers(0, classes, (4, 5))
        truth = np.kron(np.where(blocks == 1, 0, blocks), np.ones((5, 7))).astype(np.uint16)
        names = rng.permutation(np.resize(ids, classes))
        prediction = np.where(rng.random(truth.shape) < 0.7, names[truth], rng.choice(ids, truth.shape))
        if void:
            truth = np.where(rng.random(truth.shape) < 0.1, IGNORE, truth)
        maps.append((truth.astype(np.uint16), prediction.astype(np.uint16)))
    return maps


def histogram(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Count as google/diffseg does: a row for each class, a column for each id up to the largest, with or without."""
    table = np.zeros((classes, max(classes, int(prediction.max()) + 1)), int)
    for true_class, predicted in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if 0 <= true_class < classes:
            table[true_class, predicted] += 1
    return table


def match_in_image(truth: np.ndarray, prediction: np.ndarray, classes: int) -> tuple[np.ndarray, ...]:
    """Return true positives, false positives, false negatives, the reordered histogram and the ids of its columns."""
    table = histogram(truth, prediction, classes)
    rows, columns = linear_sum_assignment(table, maximize=True)
    hits = table[rows, columns]
    missed = table.sum(1) - hits
    table = table[:, columns]
    return hits, table.sum(0) - np.diag(table), missed, table, columns


def summed(parts: list[tuple[np.ndarray, ...]]) -> tuple[float, float]:
    hit, wrong, missed = (np.sum([part[index] for part in parts], axis=0) for index in range(3))
    with np.errstate(invalid="ignore"):
        return hit.sum() / (hit + missed).sum(), float(np.nanmean(hit / (hit + wrong + missed)))


@pytest.mark.parametrize("ids", [(0, 1, 2, 3, 4), (0, 3, 9), (2, 4, 5, 7, 8, 11, 12)])
@pytest.mark.parametrize("seed", range(3))
def test_matching_by_image_counts_as_google_diffseg_does(seed: int, ids: tuple[int, ...]) -> None:
    """Also where ids have gaps, whose columns without pixels keep segments from being matched to absent classes."""
    maps = random_maps(seed, 6, ids)
    expected = summed([match_in_image(truth.astype(int), prediction, 6) for truth, prediction in maps])
    assert scored(maps, Protocol(view=View(), classes=6, matching="image")) == pytest.approx(expected, abs=1e-12)


def diffcut(maps: Maps, classes: int) -> tuple[float, float]:
    """Match twice, as DiffCut does for data sets with background."""
    parts = []
    for truth, prediction in maps:
        truth, prediction = truth.astype(int), prediction.astype(int)
        objects = np.where(truth == classes - 1, -1, truth)
        *_, table, columns = match_in_image(objects, prediction, classes - 1)
        kept = [columns[row] for row in range(len(table)) if table[row].max() > 0]
        background = prediction.max() + 1
        for segment in set(np.unique(prediction)) - set(kept):
            prediction[prediction == segment] = background
        parts.append(match_in_image(truth, prediction, classes))
    return summed(parts)


@pytest.mark.parametrize("ids", [(0, 1, 2), (0, 1, 2, 3, 4, 5, 6, 7), (1, 4, 9)])
@pytest.mark.parametrize("seed", range(3))
def test_background_is_matched_in_two_steps_as_diffcut_does(seed: int, ids: tuple[int, ...]) -> None:
    maps = random_maps(seed, 6, ids, void=False)
    protocol = Protocol(view=View(), classes=6, matching="image", background=True)
    assert scored(maps, protocol) == pytest.approx(diffcut(maps, 6), abs=1e-12)


def test_two_steps_join_the_segments_of_background_and_one_does_not() -> None:
    truth = np.array([[0, 0, 2, 2, 2, 2, 2, 2]], np.uint16)  # an object, and background as class 2
    prediction = np.array([[0, 0, 1, 1, 2, 2, 3, 3]], np.uint16)
    joined = scored([(truth, prediction)], Protocol(view=View(), classes=3, matching="image", background=True))
    apart = scored([(truth, prediction)], Protocol(view=View(), classes=3, matching="image"))
    assert joined == (1, 1)
    assert apart[0] == 0.5


@pytest.mark.parametrize("seed", [0, 1, 2, 32])  # with seed 32, two assignments are equally good
def test_one_matching_for_the_data_set_counts_as_stego_does(seed: int) -> None:
    """Ids from the class count on are dropped, and absent classes count as 0 where their id has pixels."""
    classes = 6
    maps = random_maps(seed, classes, tuple(range(8)))
    table = np.zeros((classes, classes), int)
    for truth, prediction in maps:
        for true_class, predicted in zip(truth.ravel(), prediction.ravel(), strict=True):
            if true_class < classes and predicted < classes:
                table[true_class, predicted] += 1
    _, classes_of_ids = linear_sum_assignment(table.T, maximize=True)
    reordered = table[:, np.argsort(classes_of_ids)]
    hit = np.diag(reordered)
    expected = summed([(hit, reordered.sum(0) - hit, reordered.sum(1) - hit)])
    assert scored(maps, Protocol(view=View(), classes=classes, matching="dataset")) == pytest.approx(expected)


def test_an_absent_class_counts_as_0_only_if_its_id_has_pixels() -> None:
    truth = np.array([[0, 0, 0, 0]], np.uint16)
    protocol = Protocol(view=View(), classes=3, matching="dataset")
    # Class 0 takes id 0 (3 of 4 pixels), an absent class id 1, and the other absent class an id without pixels.
    assert scored([(truth, np.array([[0, 0, 0, 1]], np.uint16))], protocol) == (0.75, (0.75 + 0) / 2)
    assert scored([(truth, truth)], protocol) == (1, 1)


def test_names_are_scored_as_mmsegmentation_does() -> None:
    rng = np.random.default_rng(0)
    classes, maps = 5, []
    for _ in range(2):
        truth, prediction = rng.integers(0, 3, (2, 9, 11)).astype(np.uint16)
        truth[rng.random(truth.shape) < 0.1] = IGNORE
        prediction[0, :2] = 3  # predicted but absent; class 4 is neither
        maps.append((truth, prediction))
    truth, prediction = (np.concatenate([pair[side].ravel() for pair in maps]) for side in (0, 1))
    truth, prediction = truth[truth != IGNORE], prediction[truth != IGNORE]
    iou = []
    for number in range(4):
        both = ((truth == number) & (prediction == number)).sum()
        iou.append(both / ((truth == number).sum() + (prediction == number).sum() - both))
    tables = [overlap(truth, prediction, ignore_truth=IGNORE) for truth, prediction in maps]
    accuracy, miou = protocol_scores(tables, Protocol(view=View(), classes=classes, matching="names"))
    assert (accuracy.mean, miou.mean) == pytest.approx(((truth == prediction).mean(), np.mean(iou)))


SHAPES = [(427, 640), (640, 427), (333, 500), (375, 500), (64, 64), (1024, 2048), (480, 640), (96, 67)]


@pytest.mark.parametrize("shape", SHAPES)
def test_picie_resizes_the_shorter_side_and_crops_the_centre(shape: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 60000, shape).astype(np.uint16)
    height, width = shape
    size = (320, int(320 * height / width)) if width < height else (int(320 * width / height), 320)
    resized = np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    top, left = (round((length - 320) / 2.0) for length in resized.shape)
    expected = resized[top : top + 320, left : left + 320]
    assert (View(crop="centre", size=320, sampling="picie").apply(labels) == expected).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_diffcut_scores_128_pixels_of_1024_of_the_centre(shape: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 60000, shape).astype(np.uint16)
    side = min(shape) - 1
    top, left = (round((length - side) / 2.0) for length in shape)
    square = torch.tensor(labels[top : top + side, left : left + side].astype(np.float32))[None, None]
    resized = functional.interpolate(square, size=(1024, 1024), mode="nearest-exact")
    expected = functional.interpolate(resized, size=(128, 128))[0, 0].numpy()
    assert (View(crop="centre", size=128, sampling="diffcut").apply(labels) == expected).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_centre_square_is_resized_as_google_diffseg_does(shape: tuple[int, int]) -> None:
    """TensorFlow computes the index in float32 as (x + 0.5) times the ratio, as PyTorch's nearest-exact does."""
    labels = np.random.default_rng(0).integers(0, 60000, shape).astype(np.uint16)
    side = min(shape)
    top, left = ((length - side) // 2 for length in shape)
    square = torch.tensor(labels[top : top + side, left : left + side].astype(np.float32))[None, None]
    expected = functional.interpolate(square, size=(512, 512), mode="nearest-exact")[0, 0].numpy()
    assert (View(crop="centre", size=512).apply(labels) == expected).all()


def test_the_smallest_maps_can_be_viewed_and_a_sampling_needs_its_square() -> None:
    one = np.array([[7]], np.uint16)
    for sampling in ("picie", "diffcut"):
        assert (View(crop="centre", size=4, sampling=sampling).apply(one) == np.full((4, 4), 7)).all()
        with pytest.raises(ValueError, match="expected the centre square and a size"):
            View(size=4, sampling=sampling)
    assert str(View(crop="centre", size=128, sampling="diffcut")) == "centre square, 128 px (nearest, of 1,024 px)"
