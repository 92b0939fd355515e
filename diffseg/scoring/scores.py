"""All scores of label maps against ground truth, of one image and of many images together.

Three ways of matching segments to classes are in use, and their scores must not be compared with each other:

* for each image alone, with scores averaged over images;
* for each image alone, with pixels counted by class over the dataset (google/diffseg, and so DiffSeg's paper);
* once for the dataset (PiCIE, STEGO), so that a predicted id must mean the same in every image.

"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffseg.scoring.bootstrap import Interval, bootstrap
from diffseg.scoring.boundaries import boundary_score
from diffseg.scoring.class_counts import confusions, counts_by_class, scores_of_counts, scores_of_dataset_matching
from diffseg.scoring.overlap import (
    Overlap,
    covering,
    match_per_image,
    mean_best_iou,
    overlap,
    splits_and_merges,
    variation_of_information,
)
from diffseg.scoring.view import View
from diffseg.segmentation import IGNORE

__all__ = [
    "CLASS_SCORES",
    "IMAGE_SCORES",
    "MAX_CLASSES",
    "ImageScores",
    "named_counts",
    "named_scores",
    "pool_scores",
    "score_image",
]

IMAGE_SCORES = ("accuracy", "miou", "best_iou", "covering", "vi", "boundary_f", "split", "merged")
"""Scores of each image: vi is in bits, split and merged count regions, and the others are shares, 0 to 1."""

CLASS_SCORES = ("class_accuracy", "class_miou", "dataset_accuracy", "dataset_miou")
"""Scores of all images together, 0 to 1: matched for each image (class_…), and once for the dataset (dataset_…)."""

MAX_CLASSES = 256
"""Ground truth with more ids than this numbers its regions; its ids are not classes."""

ROUNDS = 1000
"""Bootstrap resamples."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageScores:
    """Scores of one image; with several annotations of it, the means over them.

    Attributes:
        values: Score by name, see `IMAGE_SCORES`; NaN if every annotation ignores every pixel.
        regions: Number of ground-truth regions.
        segments: Number of segments.
        missed: Share of the counted pixels that are in no segment.
        table: Shared pixels, from which class scores are computed; None with several annotations.
    """

    values: dict[str, float]
    regions: float
    segments: int
    missed: float
    table: Overlap | None


def score_image(truths: Sequence[np.ndarray], prediction: np.ndarray, view: View) -> ImageScores:
    """Score one image against one or more annotations.

    Args:
        truths: Ground truth, uint16 [H, W] each, 65535 = ignored.
        prediction: uint16 [H, W], 65535 = in no segment.
        view: The pixels to score.

    Raises:
        ValueError: The shapes differ.
    """
    labels = view.apply(prediction)
    scores, tables = [], []
    for truth in truths:
        if truth.shape != prediction.shape:
            raise ValueError(f"the truth has shape {truth.shape}, the label map {prediction.shape}; expected the same")
        true_labels = view.apply(truth)
        table = overlap(true_labels, labels, ignore_truth=IGNORE)
        edges = boundary_score(true_labels, labels, ignore_truth=IGNORE)
        scores.append(_values(table, edges.f))
        tables.append(table)
    counted = sum(int(table.truth_area.sum()) for table in tables)
    in_segments = sum(int(table.shared.sum()) for table in tables)
    return ImageScores(
        values={name: float(np.mean([values[name] for values in scores])) for name in IMAGE_SCORES},
        regions=float(np.mean([len(table.truth_ids) for table in tables])),
        segments=len(tables[0].segment_ids),
        missed=1 - in_segments / counted if counted else float("nan"),
        table=tables[0] if len(tables) == 1 else None,
    )


def _values(table: Overlap, boundary_f: float) -> dict[str, float]:
    """Return the scores of an image in the order of `IMAGE_SCORES`."""
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


def pool_scores(
    images: Sequence[ImageScores], classes: Sequence[int] | None, *, once: bool = True
) -> dict[str, Interval]:
    """Combine the scores of many images, with a bootstrap interval over images for each score.

    Args:
        images: Scores of the images; those without counted pixels are left out.
        classes: Ids of the ground truth's classes. None takes the ids that occur. If there are more than `MAX_CLASSES`
            of them, or if images have several annotations, there are no `CLASS_SCORES`.
        once: Also match predicted ids to classes once for the dataset, which means something only if a predicted id
            means the same in every image.

    Returns:
        The interval of each score by name; empty if no image has a score.
    """
    scored = [image for image in images if not np.isnan(image.values["covering"])]
    if not scored:
        return {}
    values = np.array([[image.values[name] for name in IMAGE_SCORES] for image in scored])
    means = bootstrap(values, lambda sums: sums / len(scored), rounds=ROUNDS)
    image_scores = dict(zip(IMAGE_SCORES, means, strict=True))
    tables = [image.table for image in scored if image.table is not None]
    if len(tables) < len(scored):
        return image_scores
    if classes is None:
        classes = np.unique(np.concatenate([table.truth_ids for table in tables])).tolist()
    if len(classes) > MAX_CLASSES:
        return image_scores
    per_image = bootstrap(counts_by_class(tables, classes), scores_of_counts, rounds=ROUNDS)
    if not once:
        return image_scores | dict(zip(CLASS_SCORES[:2], per_image, strict=True))
    features, count = confusions(tables, classes), len(classes)
    per_dataset = bootstrap(features, lambda sums: scores_of_dataset_matching(sums, count), rounds=ROUNDS)
    return image_scores | dict(zip(CLASS_SCORES, per_image + per_dataset, strict=True))


def named_scores(tables: Sequence[Overlap], classes: Sequence[int]) -> tuple[Interval, Interval, dict[int, float]]:
    """Score maps whose ids are the classes of the ground truth, so that nothing is matched.

    Args:
        tables: For each image, the overlap of its ground truth and its map of classes. Pixels without a class count as
            missed.
        classes: The classes that are scored.

    Returns:
        Accuracy and mIoU, with bootstrap intervals over images, and the IoU of each class. The mean is over classes
        that occur or were predicted.
    """
    counts = named_counts(tables, classes)
    accuracy, miou = bootstrap(counts.reshape(len(tables), -1), scores_of_counts, rounds=ROUNDS)
    hit, wrong, missed = counts.sum(axis=0)
    union = hit + wrong + missed
    return accuracy, miou, {class_id: float(hit[i] / union[i]) for i, class_id in enumerate(classes) if union[i]}


def named_counts(tables: Sequence[Overlap], classes: Sequence[int]) -> np.ndarray:
    """Return true positives, false positives and false negatives of each class, float64 [N, 3, C], without matching."""
    counts = np.zeros((len(tables), 3, len(classes)))
    for number, table in enumerate(tables):
        for index, class_id in enumerate(classes):
            row, column = table.truth_ids == class_id, table.segment_ids == class_id
            hit = table.shared[np.ix_(row, column)].sum()
            counts[number, :, index] = hit, table.shared[:, column].sum() - hit, table.truth_area[row].sum() - hit
    return counts
