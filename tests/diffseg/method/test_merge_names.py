"""Segments of one name become one, with the statistics of their union."""

from __future__ import annotations

import numpy as np

from diffseg.method.decision import MARGIN_UNIT, to_segmentation
from diffseg.method.merge_names import merge_same_names
from diffseg.method.naming import BACKGROUND_INDEX, NO_NAME

LABELS = np.array([[0, 0, 1, 1, 1], [2, 3, 3, 4, 5]], dtype=np.int16)
NAMES = [1, 0, 1, NO_NAME, BACKGROUND_INDEX, NO_NAME]


def stats() -> np.ndarray:
    """Return the statistics of LABELS, with an unused proposal in front of them."""
    table = np.zeros((8, 7), dtype=np.int64)
    for label, name in enumerate(NAMES):
        rows, columns = np.nonzero(np.equal(LABELS, label))
        area = len(rows)
        box = [rows.min(), rows.max(), columns.min(), columns.max()]
        margin, score = (label + 1) * MARGIN_UNIT // 10, (label + 1) * MARGIN_UNIT // 8
        table[:, label + 1] = [area, *box, area * margin, name, score]
    return table


def test_segments_of_one_name_are_merged_and_nameless_ones_are_not() -> None:
    labels, merged = merge_same_names(LABELS, stats())
    assert labels.tolist() == [[0, 0, 1, 1, 1], [0, 2, 2, 3, 4]]
    assert labels.dtype == np.int16
    result = to_segmentation(labels, merged, (2, 5), names=("cat", "sky"))
    assert [segment.name for segment in result.segments] == ["sky", "cat", None, "background", None]
    sky = result.segments[0]
    assert (sky.area, sky.bbox) == (3, (0, 0, 2, 2))
    assert sky.confidence == (2 * (MARGIN_UNIT // 10) + 3 * MARGIN_UNIT // 10) / MARGIN_UNIT / 3
    assert abs((sky.name_score or 0) - (2 * 1 / 8 + 3 / 8) / 3) < 1e-6
    before = to_segmentation(LABELS, stats(), (2, 5), names=("cat", "sky")).segments
    assert [s.bbox for s in result.segments[1:]] == [before[k].bbox for k in (1, 3, 4, 5)]
    assert [s.confidence for s in result.segments[1:]] == [before[k].confidence for k in (1, 3, 4, 5)]
