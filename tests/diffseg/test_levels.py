"""Cuts of levels: closed forms of small label maps, and the levels of whole passes of the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelled_runs import halves
from planted import planted, voronoi

from diffseg import IGNORE, Segmentation, Segmenter
from diffseg.levels import LONGEST_SIDE, Cut, cell_size, cut_again, groups_after, leaf_map, merges_of
from diffseg.method.leaves import levels_of
from diffseg.method.proposals import propose_with_leaves
from diffseg.scoring.overlap import match_per_image, overlap
from diffseg.segmentation import Box, Levels, Segment
from diffseg.settings import settings_of
from diffseg.tiny.scenes.scenes import generate_scene

LABELS = np.repeat(np.repeat(np.array([[0, 1], [2, IGNORE]], np.uint16), 4, axis=0), 6, axis=1)


def segments_of(labels: np.ndarray) -> list[Segment]:
    segments = []
    for label in range(int(labels[labels != IGNORE].max()) + 1):
        y, x = np.nonzero(labels == label)
        bbox = (int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1)
        segments.append(Segment(id=label, area=len(x), bbox=bbox, confidence=0.75))
    return segments


@pytest.mark.parametrize("choice", [{}, {"tau": 1.0, "stable": True}, {"tau": -1.0}, {"segments": 0}])
def test_a_cut_is_one_valid_choice(choice: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        Cut(**choice)


def test_a_cut_at_a_threshold_or_a_number_applies_the_merges_below_it() -> None:
    levels = halves(LABELS)
    assert [merges_of(levels, Cut(tau=tau), tau) for tau in (0.0, 0.1, 0.15, 0.4, 1.5, 9.0)] == [0, 0, 1, 3, 4, 5]
    assert [merges_of(levels, Cut(segments=count), 0.4) for count in (1, 2, 3, 6, 99)] == [5, 4, 3, 0, 0]


def test_a_cut_below_the_run_divides_segments_and_one_above_joins_them() -> None:
    levels, labels = halves(LABELS), np.repeat(np.arange(2, dtype=np.uint16)[None], 4, axis=0).repeat(4, axis=1)
    fine = cut_again(halves(labels), labels, segments_of(labels), Cut(segments=4))
    np.testing.assert_array_equal(fine.labels, np.where(np.arange(8) < 4, 0, 2)[None].repeat(4, axis=0) // 2)
    same = cut_again(levels, LABELS, segments_of(LABELS), Cut(tau=0.4), 0.4)
    np.testing.assert_array_equal(same.labels, LABELS)
    assert [segment.confidence for segment in same.segments] == [0.75] * 3, "whole segments keep theirs"
    joined = cut_again(levels, LABELS, segments_of(LABELS), Cut(segments=2))
    np.testing.assert_array_equal(joined.labels, np.select([LABELS < 2, LABELS == 2], [0, 1], IGNORE))
    assert [(s.id, s.area, s.bbox, s.confidence) for s in joined.segments] == [
        (0, 48, (0, 0, 12, 4), 0.5),
        (1, 24, (0, 4, 6, 4), 0.75),
    ]
    assert joined.confidence == pytest.approx((48 * 0.5 + 24 * 0.75) / 72)


def test_the_best_level_has_many_segments_as_far_as_they_are_confident() -> None:
    levels = halves(LABELS)
    areas = np.full(6, 12)
    assert merges_of(levels, Cut(stable=True), 0.0, areas) == 3, "leaves are half as confident as the rest"
    unsure = replace(levels, confidences=np.array([0.1, 0.1, 0.1, 0.1, 1.0], np.float32))
    assert merges_of(unsure, Cut(stable=True), 0.0, areas) == 0
    sure = replace(levels, confidences=np.array([0.1, 0.1, 0.1, 0.99, 1.0], np.float32), leaf_confidences=np.zeros(6))
    assert merges_of(sure, Cut(stable=True), 0.0, np.array([1, 1, 99, 99, 1, 1])) == 4


def test_the_union_takes_the_name_with_most_evidence() -> None:
    labels = np.array([[0] * 3 + [1] * 5], np.uint16)
    segments = segments_of(labels)
    named = [
        Segment(id=0, area=3, bbox=(0, 0, 3, 1), confidence=1.0, name="cat", name_score=0.9),
        Segment(id=1, area=5, bbox=(3, 0, 5, 1), confidence=1.0, name="dog", name_score=0.4),
    ]
    (union,) = cut_again(halves(labels), labels, named, Cut(segments=1)).segments
    assert (union.name, union.name_score) == ("cat", pytest.approx(3 * 0.9 / 8))
    (unnamed,) = cut_again(halves(labels), labels, segments, Cut(segments=1)).segments
    assert (unnamed.name, unnamed.name_score) == (None, None)


def test_pixels_of_a_cell_of_another_segment_follow_a_neighbouring_cell() -> None:
    labels = np.zeros((3, 4 * LONGEST_SIDE), np.uint16)
    labels[:, 2 * LONGEST_SIDE - 1 :] = 1  # one pixel before the middle, which is a border of cells
    levels = Levels(
        numbers=np.where(np.arange(LONGEST_SIDE) >= LONGEST_SIDE // 2, 1, 0).astype(np.uint8)[None],
        segment_of_leaf=np.array([0, 1, 1], np.int32),
        leaf_confidences=np.ones(3, np.float32),
        pairs=np.array([[1, 2], [0, 3]], np.int32),
        heights=np.array([0.1, 1.0], np.float32),
        confidences=np.ones(2, np.float32),
    )
    assert cell_size(*labels.shape) == 4
    leaves = leaf_map(levels, labels)
    assert (leaves[:, 2 * LONGEST_SIDE - 1] == 2).all(), "as the cell on its right, which is of its segment"


@pytest.mark.parametrize(("fit", "batch_size"), [("letterbox", 1), ("crop", 3)])
def test_levels_leave_the_label_map_as_it_is_and_their_cut_at_its_threshold_is_that_map(
    fit: Any, batch_size: int, checkpoints: dict[str, Path]
) -> None:
    plain = Segmenter.from_pretrained(checkpoints["sd1"], tau=0.1, fit=fit, batch_size=batch_size, anchors_per_side=6)
    levelled = Segmenter(plain.backbone, plain.settings, batch_size=batch_size, levels=True)
    generator = np.random.default_rng(0)
    images: list[Any] = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(64, 90), (1, 1)]]
    for before, now in zip(plain(images), levelled(images), strict=True):
        check_same(before, now)
        assert now.levels is not None
        groups, _ = groups_after(now.levels, merges_of(now.levels, Cut(tau=0.1), 0.1))
        np.testing.assert_array_equal(groups, now.levels.segment_of_leaf)
        fine = cut_again(now.levels, now.labels, now.segments, Cut(tau=0.0))
        table = overlap(fine.labels, now.labels, ignore_truth=IGNORE)
        assert ((table.shared > 0).sum(axis=1) == 1).all(), "every leaf lies in one segment"
        assert (np.diff(now.levels.heights) >= 0).all()
        for confidences in (now.levels.confidences, now.levels.leaf_confidences):
            assert ((confidences >= 0) & (confidences <= 1)).all()


def check_same(first: Segmentation, second: Segmentation) -> None:
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.segments == second.segments
    assert first.confidence == second.confidence


def test_methods_without_merging_and_thresholds_of_each_image_have_no_levels(checkpoints: dict[str, Path]) -> None:
    segmenter = Segmenter.from_pretrained(checkpoints["sd1"])
    with pytest.raises(ValueError, match="ncut has no levels"):
        Segmenter(segmenter.backbone, settings_of(method="ncut"), levels=True)
    with pytest.raises(ValueError, match="recut --stable"):
        Segmenter(segmenter.backbone, settings_of(stable=True), levels=True)


def test_leaves_of_planted_attention_are_the_regions_that_a_lower_threshold_tells_apart() -> None:
    fine = voronoi(16, 8, 3)
    coarse = fine // 2
    near, far = planted(fine, leak=0.25, seed=1), planted(coarse, leak=0.02, seed=2)
    attention = torch.from_numpy(0.5 * near + 0.5 * far).float()[None]
    maps, leaves = propose_with_leaves(attention, torch.tensor([True]), (16, 16), settings_of(), (0.4,) * 3)
    labels = maps[0].argmax(dim=0).numpy().astype(np.uint16)
    segmentation = Segmentation(labels=labels, segments=tuple(segments_of(labels)), confidence=1.0)
    content = Box(top=0, left=0, bottom=16, right=16)
    arrays = [tensor[0].numpy() for tensor in (leaves.scores, leaves.fine_scores, leaves.distances)]
    levels = levels_of(segmentation, *arrays, threshold=0.4, content=content)
    assert same_partition(labels, coarse)
    assert same_partition(leaf_map(levels, labels), fine)


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    return len(np.unique(first * 1000 + second)) == len(np.unique(first)) == len(np.unique(second))


def test_cuts_of_scenes_agree_with_passes_at_other_thresholds() -> None:
    segmenter = Segmenter.from_pretrained("tiny", levels=True)
    agreement = []
    for seed in range(2):
        image = generate_scene(seed).image
        pass_of = Segmenter(segmenter.backbone, segmenter.settings.with_values(tau=(0.3,) * 3))(image)
        levelled = segmenter(image)
        cut = cut_again(levelled.levels, levelled.labels, levelled.segments, Cut(tau=0.3), 0.3)
        agreement.append(match_per_image(overlap(pass_of.labels, cut.labels, ignore_truth=IGNORE)).miou)
    assert np.mean(agreement) > 0.6
