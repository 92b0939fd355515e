"""Colours of labels, overlays and contact sheets."""

from __future__ import annotations

import numpy as np

from diffseg import IGNORE
from diffseg.drawing.overlay import CAPTION_HEIGHT, GAP, contact_sheet, overlay, palette
from diffseg.segmentation import borders


def test_the_colour_of_a_label_does_not_depend_on_the_count() -> None:
    assert np.array_equal(palette(5), palette(300)[:5])
    assert len(np.unique(palette(40), axis=0)) == 40


def test_borders_lie_where_labels_change() -> None:
    labels = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]], dtype=np.uint16)
    expected = [[False, True, False], [True, True, True], [False, False, False]]
    assert borders(labels).tolist() == expected


def test_an_overlay_mixes_colours_and_darkens_ignored_pixels() -> None:
    image = np.full((6, 6, 3), 100, dtype=np.uint8)
    labels = np.zeros((6, 6), dtype=np.uint16)
    labels[:, 3:] = IGNORE
    drawn = overlay(image, labels, opacity=0.5)
    assert np.array_equal(drawn[0, 0], np.rint(50 + palette(1)[0] * 0.5))
    assert (drawn[:, 2] == 255).all()
    assert (drawn[:, 3:] == 25).all()
    assert np.array_equal(overlay(image, np.zeros((6, 6), dtype=np.uint16), opacity=0.0), image)


def test_a_contact_sheet_shows_every_image_at_the_requested_height() -> None:
    red = np.zeros((10, 20, 3), dtype=np.uint8) + np.array([255, 0, 0], dtype=np.uint8)
    blue = np.zeros((40, 20, 3), dtype=np.uint8) + np.array([0, 0, 255], dtype=np.uint8)
    sheet = np.asarray(contact_sheet([[red, blue], [blue, red], [red]], height=32, columns=2))
    assert (sheet == (255, 0, 0)).all(axis=2).sum() == 3 * 32 * 64
    assert (sheet == (0, 0, 255)).all(axis=2).sum() == 2 * 32 * 16


def test_captions_are_drawn_above_their_rows() -> None:
    grey = np.full((8, 200, 3), 128, np.uint8)
    plain, captioned = (
        np.asarray(contact_sheet([[grey], [grey]], height=32, captions=captions)) for captions in ((), ("a", "b"))
    )
    assert captioned.shape[0] == plain.shape[0] + 2 * CAPTION_HEIGHT
    for top in (GAP, GAP + CAPTION_HEIGHT + 32 + GAP):
        assert captioned[top : top + CAPTION_HEIGHT].min() < 100  # the text
        assert (captioned[top + CAPTION_HEIGHT : top + CAPTION_HEIGHT + 32, GAP : GAP + 100] == 128).all()
