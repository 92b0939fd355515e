"""Converts masks to polygons, for formats without masks, and measures the IoU of a mask with its polygon."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

MIN_POINTS = 3
"""Points that readers expect of a polygon; smaller ones repeat their last point."""

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""x and y of a step right, down, left and up."""
_PIXELS = ((0, 0), (-1, 0), (-1, -1), (0, -1))
"""Offset from the start of a step to the pixel on its right-hand side."""


def mask_polygon(mask: np.ndarray) -> np.ndarray:
    """Return a mask as one polygon through the centres of its border pixels.

    Pixels that touch at a corner are connected. Each hole, and each further piece of the mask, is joined to the rest by
    a line there and back, which encloses no area; Ultralytics converts COCO's masks in the same way.

    Args:
        mask: bool [H, W] with at least one True.

    Returns:
        x and y of each point in pixels, int64 [N, 2] with N ≥ `MIN_POINTS`. The centre of the first pixel is (0, 0).
    """
    polygon, *others = _border_loops(mask)
    for loop in others:
        squared = ((polygon[:, None] - loop[None]) ** 2).sum(axis=2)
        i, j = divmod(int(squared.argmin()), len(loop))
        polygon = np.concatenate([polygon[: i + 1], loop[j:], loop[: j + 1], polygon[i:]])
    return np.concatenate([polygon, np.repeat(polygon[-1:], max(0, MIN_POINTS - len(polygon)), axis=0)])


def polygon_mask(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels in and on a polygon, bool [H, W], as OpenCV's `fillPoly` draws them."""
    image = Image.new("1", (size[1], size[0]))
    ImageDraw.Draw(image).polygon([(x, y) for x, y in polygon.tolist()], fill=1, outline=1)
    return np.asarray(image)


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Return the intersection over union of two masks, bool [H, W]; at least one of them is not empty."""
    return float((first & second).sum() / (first | second).sum())


def _border_loops(mask: np.ndarray) -> list[np.ndarray]:
    """Return the corners of the closed paths through the border pixels, int64 [N, 2] each, the outermost first.

    The walk goes along the sides of pixels, with the mask on its right-hand side, and turns left where it can, so that
    it crosses from a pixel to one that touches it at a corner.
    """
    inside = np.pad(mask, 1)
    core = inside[1:-1, 1:-1]
    sides = (
        core & ~inside[:-2, 1:-1],  # the pixel above is outside
        core & ~inside[1:-1, 2:],
        core & ~inside[2:, 1:-1],
        core & ~inside[1:-1, :-2],
    )
    steps: set[tuple[int, int, int]] = set()  # direction, and x and y of the corner of pixels where the step starts
    for direction, (dx, dy) in enumerate(_PIXELS):
        ys, xs = np.nonzero(sides[direction])
        steps.update((direction, x, y) for x, y in zip((xs - dx).tolist(), (ys - dy).tolist(), strict=True))
    loops = []
    for start in sorted(steps, key=lambda step: (step[2], step[1])):
        if start not in steps:
            continue
        direction, x, y = start
        points: list[tuple[int, int]] = []
        while True:
            steps.discard((direction, x, y))
            pixel = (x + _PIXELS[direction][0], y + _PIXELS[direction][1])
            if not points or points[-1] != pixel:
                points.append(pixel)
            x, y = x + _STEPS[direction][0], y + _STEPS[direction][1]
            turns = ((direction + turn) % 4 for turn in (3, 0, 1))
            direction = next((turn for turn in turns if (turn, x, y) in steps or (turn, x, y) == start), -1)
            if direction < 0 or (direction, x, y) == start:
                break
        loops.append(_corners(np.array(points)))
    return loops


def _corners(points: np.ndarray) -> np.ndarray:
    """Return the points of a closed path, int64 [N, 2], at which it changes its direction."""
    if len(points) > 1 and (points[0] == points[-1]).all():
        points = points[:-1]
    before = points - np.roll(points, 1, axis=0)
    after = np.roll(points, -1, axis=0) - points
    turns = (before != after).any(axis=1)
    return points[turns] if turns.any() else points[:1]
