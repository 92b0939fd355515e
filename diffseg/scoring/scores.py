"""All scores of a label run: of an image, and of many images together.

Three ways of matching segments to classes are in use, and figures of one say nothing beside figures of another:

* for each image alone, scores averaged over images;
* for each image alone, pixels counted by class over the data set (google/diffseg, and so DiffSeg's paper);
* once for the data set (PiCIE, STEGO): a predicted id must mean the same in every image.

Axes: N images, C classes, P predicted ids, T regions of a truth, K segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from diffseg.scoring.boundaries import boundary_score
from diffseg.scoring.overlap import (
    Interval,
    Overlap,
    bootstrap,
    covering,
    match_per_image,
    mean_best_iou,
    overlap,
    splits_and_merges,
    variation_of_information,
)
from diffseg.scoring.view import View
from diffseg.segmentation import IGNORE

__all__ = ["CLASS_SCORES", "IMAGE_SCORES", "MOST_CLASSES", "ImageScores", "named_scores", "pooled", "score_image"]

IMAGE_SCORES = ("accuracy", "miou", "best_iou", "covering", "vi", "boundary_f", "split", "merged")
"""Of each image. vi in bits, split and merged are counts of regions, the others shares in [0, 1]."""

CLASS_SCORES = ("class_accuracy", "class_miou", "dataset_accuracy", "dataset_miou")
"""Of all images together, in [0, 1]: matched for each image, and once for the data set."""

MOST_CLASSES = 256
"""Where truths hold more ids than this, the ids number regions and name no classes."""

ROUNDS = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageScores:
    """values: by name, see `IMAGE_SCORES`; NaN where every truth ignores every pixel; means over several truths.

    regions, segments: how many there are (of several truths: the mean). missed: share of the counted pixels in no
    segment. table: shared pixels, from which the scores of classes follow; None with several truths.
    """

    values: dict[str, float]
    regions: float
    segments: int
    missed: float
    table: Overlap | None


def score_image(truths: Sequence[np.ndarray], prediction: np.ndarray, view: View) -> ImageScores:
    """Score one image against one or more truths.

    truths: uint16 [H, W] each, 65535 = ignore. prediction: uint16 [H, W], 65535 = in no segment.
    Raises ValueError where shapes differ.
    """
    found = view.apply(prediction)
    scores, tables = [], []
    for truth in truths:
        if truth.shape != prediction.shape:
            raise ValueError(f"the truth has shape {truth.shape}, the label map {prediction.shape}; expected the same")
        true = view.apply(truth)
        table = overlap(true, found, ignore_truth=IGNORE)
        edges = boundary_score(true, found, ignore_truth=IGNORE)
        scores.append(_values(table, edges.f))
        tables.append(table)
    counted = sum(int(table.truth_area.sum()) for table in tables)
    claimed = sum(int(table.shared.sum()) for table in tables)
    return ImageScores(
        values={name: float(np.mean([one[name] for one in scores])) for name in IMAGE_SCORES},
        regions=float(np.mean([len(table.truth_ids) for table in tables])),
        segments=len(tables[0].segment_ids),
        missed=1 - claimed / counted if counted else float("nan"),
        table=tables[0] if len(tables) == 1 else None,
    )


def _values(table: Overlap, boundary_f: float) -> dict[str, float]:
    if not len(table.truth_area):
        return dict.fromkeys(IMAGE_SCORES, float("nan"))
    matching = match_per_image(table)
    split, merged = splits_and_merges(table)
    return {
        "accuracy": matching.accuracy,
        "miou": matching.miou,
        "best_iou": mean_best_iou(table),
        "covering": covering(table),
        "vi": variation_of_information(table),
        "boundary_f": boundary_f,
        "split": float(split),
        "merged": float(merged),
    }


def pooled(images: Sequence[ImageScores], classes: Sequence[int] | None) -> dict[str, Interval]:
    """The figures of many images, each with its bootstrap interval over images; {} where none has a score.

    classes: ids of the truths' classes. None takes those that occur, or none where images have several truths or there
    are more than `MOST_CLASSES` of them; then there are no `CLASS_SCORES`.
    """
    scored = [image for image in images if not np.isnan(image.values["covering"])]
    if not scored:
        return {}
    values = np.array([[image.values[name] for name in IMAGE_SCORES] for image in scored])
    means = bootstrap(values, lambda sums: sums / len(scored), rounds=ROUNDS)
    figures = dict(zip(IMAGE_SCORES, means, strict=True))
    tables = [image.table for image in scored if image.table is not None]
    if len(tables) < len(scored):
        return figures
    if classes is None:
        classes = np.unique(np.concatenate([table.truth_ids for table in tables])).tolist()
    if len(classes) > MOST_CLASSES:
        return figures
    for_each_image = bootstrap(_counts_by_class(tables, classes), _matched_for_each_image, rounds=ROUNDS)
    features, count = _confusions(tables, classes), len(classes)
    once = bootstrap(features, lambda sums: _matched_once(sums, count), rounds=ROUNDS)
    return figures | dict(zip(CLASS_SCORES, for_each_image + once, strict=True))


def named_scores(tables: Sequence[Overlap], classes: Sequence[int]) -> tuple[Interval, Interval, dict[int, float]]:
    """Accuracy, mIoU and the IoU of each class of maps whose ids are the truth's classes: nothing is matched.

    tables: of truths and of maps of classes, one an image. classes: those that are counted; the means are of those that
    occur or were found. Intervals are bootstrapped over images. Pixels without a class are missed.
    """
    counts = np.zeros((len(tables), 3, len(classes)))
    for number, table in enumerate(tables):
        for place, name in enumerate(classes):
            row, column = table.truth_ids == name, table.segment_ids == name
            hit = table.shared[np.ix_(row, column)].sum()
            counts[number, :, place] = hit, table.shared[:, column].sum() - hit, table.truth_area[row].sum() - hit
    accuracy, miou = bootstrap(counts.reshape(len(tables), -1), _matched_for_each_image, rounds=ROUNDS)
    hit, wrong, missed = counts.sum(axis=0)
    union = hit + wrong + missed
    return accuracy, miou, {name: float(hit[i] / union[i]) for i, name in enumerate(classes) if union[i]}


def _counts_by_class(tables: Sequence[Overlap], classes: Sequence[int]) -> np.ndarray:
    """True positives, false positives and false negatives of each class: float64 [N, 3 * C].

    As google/diffseg counts: the table has a row for every class of the data set, so that segments which no present
    class wants go to absent ones, as false positives of these. To which is a tie, and decided by the order of both.
    """
    counts = np.zeros((len(tables), 3, len(classes)))
    for number, table in enumerate(tables):
        places = np.searchsorted(classes, table.truth_ids)
        shared = np.zeros((len(classes), max(len(classes), table.shared.shape[1])))
        shared[places, : table.shared.shape[1]] = table.shared
        area = np.zeros(len(classes))
        area[places] = table.truth_area
        rows, columns = linear_sum_assignment(shared, maximize=True)
        hit = shared[rows, columns]
        counts[number] = hit, shared[:, columns].sum(0) - hit, area - hit
    return counts.reshape(len(tables), -1)


def _matched_for_each_image(sums: np.ndarray) -> np.ndarray:
    """Accuracy and mIoU; classes that neither occur nor were wrongly found have no IoU and count for nothing."""
    hit, wrong, missed = sums.reshape(3, -1)
    union = hit + wrong + missed
    there = union > 0
    return np.array([hit.sum() / (hit + missed).sum(), (hit[there] / union[there]).mean()])


def _confusions(tables: Sequence[Overlap], classes: Sequence[int]) -> sparse.csr_array:
    """Pixels of each class, and those it shares with each predicted id: [N, C + C * P], sparse."""
    ids = np.unique(np.concatenate([table.segment_ids for table in tables]))
    rows, columns, values = [], [], []
    for number, table in enumerate(tables):
        places = np.searchsorted(classes, table.truth_ids)
        pairs = len(classes) + places[:, None] * len(ids) + np.searchsorted(ids, table.segment_ids)
        columns += [places, pairs.ravel()]
        values += [table.truth_area, table.shared.ravel()]
        rows.append(np.full(len(places) + pairs.size, number))
    shape = (len(tables), len(classes) * (1 + len(ids)))
    together = [np.concatenate(parts) for parts in (values, rows, columns)]
    return sparse.csr_array((together[0].astype(np.float64), (together[1], together[2])), shape=shape)


def _matched_once(sums: np.ndarray, count: int) -> np.ndarray:
    """Accuracy and mIoU of the classes that occur, one predicted id each; a class without one has the IoU 0."""
    area, shared = sums[:count], sums[count:].reshape(count, -1)
    rows, columns = linear_sum_assignment(shared, maximize=True)
    hit, union = np.zeros(count), area.copy()
    hit[rows] = shared[rows, columns]
    union[rows] += shared[:, columns].sum(0) - hit[rows]
    there = area > 0
    return np.array([hit.sum() / area.sum(), (hit[there] / union[there]).mean()])
