"""Agreement of a row's label map with the prediction of a network that was not trained on the row.

Axes: H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffseg import IGNORE
from diffseg.scoring.overlap import covering, overlap
from pipeline.output.rows import decode_mask

if TYPE_CHECKING:
    from diffseg import Segmentation

BACKGROUND_ID = 0


def cv_iou(row: Mapping[str, Any], predicted: Segmentation, class_names: Sequence[str]) -> float | None:
    """Return the IoU of a row's label map with a prediction, 0 to 1; None if the label map ignores every pixel.

    With classes it is the mean over the classes of the label map, which include the background (in DiffuMask, ICCV
    2023, section 3.3, an image has only one class). Without classes it is the covering of the label map by the
    prediction: the best IoU of each segment of the label map, weighted by its area.

    Args:
        row: A row with `mask` and `segments`.
        predicted: The prediction for its image.
        class_names: Names of the network's classes by their number; empty for a network that learned segments.
    """
    mask = decode_mask(row["mask"])
    if not class_names:
        covered = covering(overlap(mask, predicted.labels, ignore_truth=IGNORE))
        return None if np.isnan(covered) else covered
    given = _mapped(mask, {s["id"]: s["class_id"] for s in row["segments"] if _has_class(s)})
    numbers = {name: number for number, name in enumerate(class_names)}
    other = _mapped(predicted.labels, {s.id: numbers[s.name] for s in predicted.segments if s.name is not None})
    classes, areas = np.unique(given[given >= 0], return_counts=True)
    if not len(classes):
        return None
    ious = []
    for number, area in zip(classes, areas, strict=True):
        where = (other == number) & (given >= 0)
        shared = int((where & (given == number)).sum())
        ious.append(shared / (int(area) + int(where.sum()) - shared))
    return float(np.mean(ious))


def main_class(row: Mapping[str, Any]) -> str | None:
    """Return the name of the class with most pixels in a row, the background only if there is no other.

    Returns:
        The name; None in a run without names, and for a row without named segments.
    """
    areas: dict[tuple[bool, str], int] = {}
    for segment in row["segments"]:
        if _has_class(segment):
            kind = (segment["class_id"] != BACKGROUND_ID, segment["name"])
            areas[kind] = areas.get(kind, 0) + segment["area"]
    return max(areas, key=lambda kind: (kind[0], areas[kind], kind[1]))[1] if areas else None


def _has_class(segment: Mapping[str, Any]) -> bool:
    return segment["class_id"] is not None and segment["class_id"] >= 0


def _mapped(labels: np.ndarray, numbers: Mapping[int, int]) -> np.ndarray:
    """Return the number of the segment of each pixel, int32 [H, W]; −1 where the segment has no number."""
    table = np.full(2**16, -1, np.int32)
    table[list(numbers)] = list(numbers.values())
    return table[labels]
