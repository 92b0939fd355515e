"""Masks become polygons through the centres of their border pixels, and lose little by it."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.exports.polygons import mask_iou, mask_polygon, polygon_mask


def mask_of(text: str) -> np.ndarray:
    """Return a bool [H, W] from lines of # and other characters."""
    return np.array([[character == "#" for character in line] for line in text.split()])


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("#", [(0, 0), (0, 0), (0, 0)]),
        ("###", [(0, 0), (2, 0), (2, 0)]),
        ("## ##", [(0, 0), (1, 0), (1, 1), (0, 1)]),
        ("#. .#", [(0, 0), (1, 1), (1, 1)]),
    ],
)
def test_the_corners_of_small_masks(text: str, points: list[tuple[int, int]]) -> None:
    assert [tuple(point) for point in mask_polygon(mask_of(text)).tolist()] == points


@pytest.mark.parametrize(
    "text",
    [
        "###### ###### ######",
        "..#... .####. ######",  # a triangle
        "##...# ##...# ######",  # a concave shape
        "####### #.....# #.....# #######",  # a hole
        "######### #..###..# #..###..# #########",  # two holes
        "##..... ##..... ....... .....## .....##",  # two pieces
        "#.#.# .#.#. #.#.#",  # pixels that touch at corners
    ],
)
def test_a_polygon_covers_its_mask(text: str) -> None:
    mask = mask_of(text)
    drawn = polygon_mask(mask_polygon(mask), mask.shape)
    assert drawn[mask].all()
    lines = 6 if "......." in text else 0  # pixels of the line that joins two pieces
    assert (drawn & ~mask).sum() <= lines


def test_the_iou_of_smooth_shapes_with_holes_is_high() -> None:
    y, x = np.mgrid[:90, :120]
    ring = (np.hypot(x - 60, y - 45) < 40) & (np.hypot(x - 50, y - 40) > 12)
    polygon = mask_polygon(ring)
    assert mask_iou(ring, polygon_mask(polygon, ring.shape)) > 0.995
    assert len(polygon) < ring.sum() / 10


def test_the_iou_of_masks() -> None:
    assert mask_iou(mask_of("##.."), mask_of(".##.")) == pytest.approx(1 / 3)
