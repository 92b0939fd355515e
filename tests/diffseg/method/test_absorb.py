"""Small pieces of a label map: who takes them, in what order, and what the stats say afterwards."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from diffseg import Segmenter
from diffseg.method.absorb import absorb, absorb_small
from diffseg.method.decide import MARGIN_UNIT
from diffseg.tiny.scenes.scenes import VALIDATION_SEEDS, generate_scene


def label_map(*rows: str) -> np.ndarray:
    return np.array([[int(cell) for cell in row] for row in rows], dtype=np.int16)


def pieces_of(labels: np.ndarray) -> list[int]:
    """Sizes of all connected areas of one label."""
    found = [ndimage.label(labels == label)[0] for label in np.unique(labels)]
    return [size for numbered in found for size in np.bincount(numbered.ravel())[1:]]


def test_a_piece_goes_to_the_label_with_the_longest_border() -> None:
    before = label_map("00111", "00211", "00211", "33311")
    assert np.array_equal(absorb_small(before, 3), label_map("00111", "00111", "00111", "33311"))
    assert np.array_equal(absorb_small(before, 2), before)


def test_of_equal_borders_the_lowest_label_takes_it() -> None:
    assert absorb_small(label_map("22011"), 2).tolist() == [[2, 2, 1, 1, 1]]


def test_two_pieces_of_one_label_count_their_borders_together_and_become_one() -> None:
    # The 2 touches the 1s with two sides, one from each, and 0 and 3 with one.
    before = label_map("00000", "01210", "01310", "33333")
    found = absorb_small(before, 2)
    assert found[1].tolist() == [0, 1, 1, 1, 0]
    assert np.array_equal(absorb_small(found, 5), found), "they are one piece of five now"


def test_what_has_grown_enough_stays() -> None:
    # The single 3 goes to the 2s, which are four with it; alone they would have been too few.
    before = label_map("11111111", "11111111", "12221111", "12311111")
    grown = absorb_small(before, 5)
    assert (grown == 2).sum() == 5
    assert (absorb_small(before, 6) == 1).all()


def test_a_ring_takes_what_lies_in_it() -> None:
    before = label_map("00000", "01110", "01210", "01110", "00000")
    assert np.array_equal(absorb_small(before, 5), label_map("00000", "01110", "01110", "01110", "00000"))


@pytest.mark.parametrize("least", [0, 1, 7, 40, 400, 10**6])
def test_no_piece_is_smaller_than_asked_and_large_ones_keep_their_pixels(least: int) -> None:
    before = np.random.default_rng(0).integers(0, 4, (40, 30)).astype(np.int16).repeat(2, axis=0)
    after = absorb_small(before, least)
    sizes = pieces_of(after)
    assert min(sizes) >= least or len(sizes) == 1
    for label in range(4):
        numbered, _ = ndimage.label(before == label)
        large = np.bincount(numbered.ravel()) >= least
        large[0] = False
        assert (after[large[numbered]] == label).all()
    assert np.array_equal(absorb_small(after, least), after)
    if least <= 1:
        assert np.array_equal(after, before)


def test_a_map_of_one_label_stays() -> None:
    assert not absorb_small(np.zeros((3, 4), dtype=np.int16), 100).any()


def stats_of(labels: np.ndarray) -> np.ndarray:
    """Of a decision: only the areas count."""
    areas = np.bincount(labels.ravel())
    return np.stack([areas, *np.zeros((5, len(areas)), dtype=np.int64)])


def test_figures_are_those_of_the_new_map() -> None:
    before = label_map("0011", "0211", "0011")
    margins = np.full((3, 4), 51, dtype=np.uint8)
    labels, stats = absorb(before, stats_of(before), margins, 2 / 12)
    assert np.array_equal(labels, label_map("0011", "0011", "0011"))
    assert stats[0].tolist() == [6, 6]
    assert stats[1:5].T.tolist() == [[0, 2, 0, 1], [0, 2, 2, 3]]
    # the pixel that changed its label has no margin any more
    assert (stats[5] / MARGIN_UNIT / stats[0]).tolist() == pytest.approx([5 / 6 * 0.2, 0.2], abs=1e-6)


def test_labels_that_are_gone_leave_no_gap() -> None:
    before = label_map("00122", "00122", "00022")
    stats = np.concatenate([stats_of(before), [[7, 8, 9], [70, 80, 90]]])  # names, and their scores
    stats = np.insert(stats, 1, 0, axis=1)  # a proposal that won no pixel, and so has no label
    labels, stats = absorb(before, stats, np.zeros((3, 5), dtype=np.uint8), 3 / 15)
    assert np.array_equal(labels, label_map("00011", "00011", "00011"))
    assert stats.shape == (8, 2)
    assert stats[6:].tolist() == [[7, 9], [70, 90]]


def test_segments_of_an_image(checkpoints: dict[str, Path]) -> None:
    image = generate_scene(VALIDATION_SEEDS[0], 128).image[:100]
    segmenter = Segmenter.from_pretrained(checkpoints["sd1"], tau=0.05, fit="crop")
    plain, kept, whole = (
        Segmenter(segmenter.backbone, dataclasses.replace(segmenter.settings, min_area=share))(image)
        for share in (0, 1e-9, 0.01)
    )
    assert np.array_equal(kept.labels, plain.labels)
    assert [(s.area, s.bbox) for s in kept.segments] == [(s.area, s.bbox) for s in plain.segments]
    assert [s.confidence for s in kept.segments] == pytest.approx([s.confidence for s in plain.segments], abs=3e-3)
    assert min(pieces_of(plain.labels)) < 100 <= min(pieces_of(whole.labels))
    assert [s.area for s in whole.segments] == np.bincount(whole.labels[whole.labels < 65535]).tolist()
