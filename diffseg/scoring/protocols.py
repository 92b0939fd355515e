"""Published evaluation protocols: how label maps become a pixel accuracy and a mean IoU that papers print.

A protocol is exact: the same label maps give the same figures as the published code. In all of them, a class counts
towards the mean IoU if it has pixels in the ground truth or if the segments that it takes have any, so that a class
absent from the ground truth whose segments have pixels counts as 0, and one without any pixels is left out.

Axes: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from diffseg.scoring.bootstrap import Interval, bootstrap
from diffseg.scoring.class_counts import confusions, counts_by_class, scores_of_counts, scores_of_dataset_matching
from diffseg.scoring.overlap import Overlap
from diffseg.scoring.scores import ROUNDS, named_scores
from diffseg.scoring.view import View

__all__ = ["Matching", "Protocol", "protocol_scores"]

Matching = Literal["image", "dataset", "names"]
"""How segments become classes; see `Protocol`."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How one published evaluation scores label maps.

    Attributes:
        view: Crop and size at which pixels are scored.
        classes: Number of scored classes, C. The ground truth holds 0 to C - 1, and 65535 where pixels are not scored.
        matching: How segments become classes.
            image: Hungarian matching in each image, with pixels summed by class over the images (google/diffseg).
            dataset: one Hungarian matching for all images; pixels with predicted ids from C on are dropped (STEGO).
            names: predicted ids are classes, so that nothing is matched (MMSegmentation's IoUMetric).
        background: With matching by image, match twice as DiffCut does. The last class is background. Segments that no
            other class takes are joined into one, and all classes are matched again.
    """

    view: View
    classes: int
    matching: Matching
    background: bool = False


def protocol_scores(tables: Sequence[Overlap], protocol: Protocol) -> tuple[Interval, Interval]:
    """Return pixel accuracy and mean IoU, 0 to 1, with bootstrap intervals over images.

    Args:
        tables: For each image, the overlap of ground truth and prediction under the view of the protocol. With matching
            by names, the ids of segments are classes.
        protocol: The protocol.
    """
    classes = range(protocol.classes)
    if protocol.matching == "names":
        return named_scores(tables, classes)[:2]
    if protocol.matching == "image":
        counts = counts_by_class(tables, classes, background=protocol.background)
        accuracy, miou = bootstrap(counts, scores_of_counts, rounds=ROUNDS)
        return accuracy, miou
    features = confusions([_first_ids(table, protocol.classes) for table in tables], classes)
    accuracy, miou = bootstrap(features, lambda sums: scores_of_dataset_matching(sums, protocol.classes), rounds=ROUNDS)
    return accuracy, miou


def _first_ids(table: Overlap, count: int) -> Overlap:
    """Drop the pixels that are in no segment, or in one with an id of at least `count`."""
    kept = table.segment_ids < count
    shared = table.shared[:, kept]
    return replace(table, shared=shared, truth_area=shared.sum(1), segment_ids=table.segment_ids[kept])
