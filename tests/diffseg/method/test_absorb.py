"""Absorption of small pieces: which label takes them, in which order, and the statistics afterwards."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from diffseg import Segmenter
from diffseg.method.absorb import absorb, absorb_small
from diffseg.method.decision import MARGIN_UNIT
from diffseg.tiny.scenes.scenes import VALIDATION_SEEDS, generate_scene


def label_map(*rows: str) -> np.ndarray:
    return np.array([[int(cell) for cell in row] for row in rows], dtype=np.int16)


def pieces_of(labels: np.ndarray) -> list[int]:
    """Return the sizes of all connected areas of one label."""
    maps = [ndimage.label(labels == label)[0] for label in np.unique(labels)]
    return [size for numbered in maps for size in np.bincount(numbered.ravel())[1:]]


def test_a_piece_goes_to_the_label_with_the_longest_border() -> None:
    before = label_map("00111", "00211", "00211", "33311")
    assert np.array_equal(absorb_small(before, 3), label_map("00111", "00111", "00111", "33311"))
    assert np.array_equal(absorb_small(before, 2), before)


def test_the_lowest_of_several_labels_with_equal_borders_takes_the_piece() -> None:
    assert absorb_small(label_map("22011"), 2).tolist() == [[2, 2, 1, 1, 1]]


def test_borders_with_two_pieces_of_one_label_are_added_and_the_pieces_become_one() -> None:
    # The 2 shares two sides with 1s, one with each piece of them, and one side with 0 and with 3.
    before = label_map("00000", "01210", "01310", "33333")
    merged = absorb_small(before, 2)
    assert merged[1].tolist() == [0, 1, 1, 1, 0]
    assert np.array_equal(absorb_small(merged, 5), merged), "they are now one piece of five pixels"


def test_a_piece_that_has_grown_enough_stays() -> None:
    # The single 3 joins the 2s, which then have enough pixels; without it they would have too few.
    before = label_map("11111111", "11111111", "12221111", "12311111")
    grown = absorb_small(before, 5)
    assert (grown == 2).sum() == 5
    assert (absorb_small(before, 6) == 1).all()


def test_a_ring_takes_the_piece_inside_it() -> None:
    before = label_map("00000", "01110", "01210", "01110", "00000")
    assert np.array_equal(absorb_small(before, 5), label_map("00000", "01110", "01110", "01110", "00000"))


@pytest.mark.parametrize("min_pixels", [0, 1, 7, 40, 400, 10**6])
def test_no_piece_is_too_small_and_large_pieces_keep_their_pixels(min_pixels: int) -> None:
    before = np.random.default_rng(0).integers(0, 4, (40, 30)).astype(np.int16).repeat(2, axis=0)
    after = absorb_small(before, min_pixels)
    sizes = pieces_of(after)
    assert min(sizes) >= min_pixels or len(sizes) == 1
    for label in range(4):
        numbered, _ = ndimage.label(before == label)
        large = np.bincount(numbered.ravel()) >= min_pixels
        large[0] = False
        assert (after[large[numbered]] == label).all()
    assert np.array_equal(absorb_small(after, min_pixels), after)
    if min_pixels <= 1:
        assert np.array_equal(after, before)


def test_a_map_of_one_label_is_unchanged() -> None:
    assert not absorb_small(np.zeros((3, 4), dtype=np.int16), 100).any()


def stats_of(labels: np.ndarray) -> np.ndarray:
    """Return statistics with the areas only."""
    areas = np.bincount(labels.ravel())
    return np.stack([areas, *np.zeros((5, len(areas)), dtype=np.int64)])


def test_statistics_are_those_of_the_new_map() -> None:
    before = label_map("0011", "0211", "0011")
    margins = np.full((3, 4), 51, dtype=np.uint8)
    labels, stats = absorb(before, stats_of(before), margins, 2 / 12)
    assert np.array_equal(labels, label_map("0011", "0011", "0011"))
    assert stats[0].tolist() == [6, 6]
    assert stats[1:5].T.tolist() == [[0, 2, 0, 1], [0, 2, 2, 3]]
    # The pixel whose label changed counts with margin 0.
    assert (stats[5] / MARGIN_UNIT / stats[0]).tolist() == pytest.approx([5 / 6 * 0.2, 0.2], abs=1e-6)


def test_labels_without_pixels_leave_no_gap() -> None:
    before = label_map("00122", "00122", "00022")
    stats = np.concatenate([stats_of(before), [[7, 8, 9], [70, 80, 90]]])  # names, and their scores
    stats = np.insert(stats, 1, 0, axis=1)  # a proposal that won no pixel and so has no label
    labels, stats = absorb(before, stats, np.zeros((3, 5), dtype=np.uint8), 3 / 15)
    assert np.array_equal(labels, label_map("00011", "00011", "00011"))
    assert stats.shape == (8, 2)
    assert stats[6:].tolist() == [[7, 9], [70, 90]]


def test_segments_of_an_image_have_the_minimum_area(checkpoints: dict[str, Path]) -> None:
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
