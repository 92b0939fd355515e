"""The scores of names by references on captioned scenes: closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from diffseg import Segment, Segmentation
from diffseg.tiny.evaluation.reference_names import Scene, chance, count_right, statistics


def test_segments_and_pixels_are_right_where_their_name_is_that_of_the_ground_truth() -> None:
    labels = np.repeat(np.array([[0, 1, 2]], np.uint16), 2, axis=0)
    ground_truth = np.array([[4, 4, 7], [4, 5, 7]], np.uint16)
    segments = tuple(Segment(id=k, area=2, bbox=(k, 0, 1, 2), confidence=1.0) for k in range(3))
    segmentation = Segmentation(labels=labels, segments=segments, confidence=1.0)
    scene = Scene(key="a", visible=[4, 5, 7], ground_truth=ground_truth, segmentation=segmentation)
    assert scene.true_classes.tolist() == [4, 4, 7]
    counts = count_right(scene, segmentation, np.array([4, 5, 4]))
    # Class 4: 2 of 5 pixels in common, class 5: 1 of 2, class 7: 0 of 2.
    assert statistics(counts).tolist() == pytest.approx([1 / 3, 3 / 6, (2 / 5 + 1 / 2 + 0) / 3])
    assert statistics(counts + counts).tolist() == pytest.approx(statistics(counts).tolist())


def test_chance_is_the_mean_share_of_one_name_over_segments() -> None:
    assert chance(np.array([3 / 2 + 5 / 4, 3 + 5])).tolist() == [pytest.approx(2.75 / 8)]
