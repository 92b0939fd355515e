"""A sheet to draw measurements on: lines, dots, boxes and text, with the colours and sizes that all plots share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import IO

from PIL import Image, ImageDraw, ImageFont

__all__ = ["COLOURS", "GRID", "HEADING", "INK", "PAPER", "SMALL", "SOFT", "TEXT", "Sheet"]

SCALE = 2  # drawn at twice the size, so that lines come out smooth
INK, SOFT, GRID, PAPER = "#1f2328", "#6e7781", "#e6e8eb", "#ffffff"
COLOURS = ("#2f7fc1", "#d9822b", "#3a9d5d", "#c8453b", "#8a63c4", "#8c6d4f", "#d46fb0", "#17a2b0", "#a3a32c")
HEADING, TEXT, SMALL = 17, 14, 12


class Sheet:
    """A picture in pixels of what is saved, x to the right and y down."""

    def __init__(self, width: float, height: float) -> None:
        self.image = Image.new("RGB", (round(width * SCALE), round(height * SCALE)), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1) -> None:
        self._draw.line([(x * SCALE, y * SCALE) for x, y in points], colour, round(width * SCALE), joint="curve")

    def dot(self, x: float, y: float, colour: str) -> None:
        self._draw.circle((x * SCALE, y * SCALE), 3 * SCALE, colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        self._draw.rectangle([value * SCALE for value in (left, top, right, bottom)], colour)

    def text(
        self, x: float, y: float, text: str, *, anchor: str = "lm", size: float = TEXT, colour: str = INK
    ) -> float:
        """Where the text ends on the right. anchor: Pillow's, "lm" for left and middle."""
        self._draw.text((x * SCALE, y * SCALE), text, colour, _font(size), anchor)
        return self._draw.textbbox((x * SCALE, y * SCALE), text, font=_font(size), anchor=anchor)[2] / SCALE

    def save(self, path: str | os.PathLike[str] | IO[bytes]) -> None:
        self.image.reduce(SCALE).quantize(128).save(path, "PNG", optimize=True)


@cache
def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)
