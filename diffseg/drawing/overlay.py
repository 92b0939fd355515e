"""Pictures of label maps: colours of labels, overlays on images, and contact sheets.

Axes: H and W pixels.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffseg.segmentation import BACKGROUND as BACKGROUND_NAME
from diffseg.segmentation import IGNORE, borders

GOLDEN_TURN = 0.618033988749895
"""Step along the hue circle from one label to the next, so that consecutive labels have very different colours."""

GAP = 8
"""Space between the images of a contact sheet, in pixels."""

CAPTION_HEIGHT = 20
"""Height of the text above a row of a contact sheet, in pixels."""

BACKGROUND, INK = (255, 255, 255), (31, 35, 40)
"""Colours of the space between images and of text in it."""

BACKGROUND_COLOUR = (96, 96, 104)
"""Colour of segments that are named `background`."""


def palette(count: int) -> np.ndarray:
    """Return the colours of the labels 0 to count − 1, uint8 [count, 3]; they do not depend on the count."""
    colours = [
        colorsys.hsv_to_rgb((0.02 + k * GOLDEN_TURN) % 1, (0.75, 0.5)[k % 2], (1.0, 0.8)[k // 2 % 2])
        for k in range(count)
    ]
    return np.rint(np.array(colours).reshape(count, 3) * 255).astype(np.uint8)


def class_colour(name: str) -> tuple[int, int, int]:
    """Return red, green and blue of a name, 0 to 255, which are the same in every image and run."""
    if name == BACKGROUND_NAME:
        return BACKGROUND_COLOUR
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    hue = int.from_bytes(digest[:2], "big") / 2**16
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.8, 0.5)[digest[2] % 2], (1.0, 0.78)[digest[3] % 2])
    return round(red * 255), round(green * 255), round(blue * 255)


def hexadecimal(colour: Sequence[int] | np.ndarray) -> str:
    """Format a colour as #rrggbb, the notation of the web and of annotation tools."""
    red, green, blue = colour
    return f"#{red:02x}{green:02x}{blue:02x}"


def segment_colours(labels: int, names: Mapping[int, str | None]) -> np.ndarray:
    """Return the colour of each label, uint8 [labels, 3]: that of its name if it has one.

    Args:
        labels: Number of labels.
        names: Name by label.
    """
    colours = palette(labels)
    for label, name in names.items():
        if name and label < labels:
            colours[label] = class_colour(name)
    return colours


def overlay(
    image: np.ndarray, labels: np.ndarray, *, opacity: float = 0.55, names: Mapping[int, str | None] | None = None
) -> np.ndarray:
    """Colour the segments of an image, with white borders; ignored pixels are darkened.

    Args:
        image: uint8 [H, W, 3].
        labels: uint16 [H, W], 65535 = ignored.
        opacity: Opacity of the colours, 0 to 1.
        names: Name by label; these labels have the colours of their names.

    Returns:
        uint8 [H, W, 3].
    """
    ignored = labels == IGNORE
    indices = np.where(ignored, 0, labels)
    colours = segment_colours(int(indices.max()) + 1, names or {})[indices].astype(np.float32)
    mixed = image * (1 - opacity) + colours * opacity
    mixed[ignored] = image[ignored] * 0.25
    mixed[borders(labels)] = 255
    return np.rint(mixed).astype(np.uint8)


def contact_sheet(
    rows: list[list[np.ndarray]], *, height: int = 256, columns: int = 1, captions: Sequence[str] = ()
) -> Image.Image:
    """Arrange images in one picture.

    Args:
        rows: Rows of images, uint8 [H, W, 3] each.
        height: Height to which every image is scaled, in pixels.
        columns: How many rows are placed side by side.
        captions: A line of text above each row; an empty sequence leaves them out.
    """
    strips = [_strip(images, height) for images in rows]
    width = max(strip.width for strip in strips)
    font = ImageFont.load_default(size=14)
    width = max([width, *(math.ceil(font.getlength(caption)) for caption in captions)])
    lines = -(-len(strips) // columns)
    text_height = CAPTION_HEIGHT if captions else 0
    step = text_height + height + GAP
    sheet = Image.new("RGB", (columns * (width + 2 * GAP), lines * step + GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, strip in enumerate(strips):
        line, column = divmod(index, columns)
        x, y = GAP + column * (width + 2 * GAP), GAP + line * step
        if captions:
            draw.text((x, y), captions[index], fill=INK, font=font)
        sheet.paste(strip, (x, y + text_height))
    return sheet


def _strip(images: list[np.ndarray], height: int) -> Image.Image:
    """Place images of one height side by side."""
    scaled = []
    for pixels in images:
        image = Image.fromarray(pixels)
        scaled.append(
            image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS)
        )
    strip = Image.new("RGB", (sum(image.width for image in scaled) + GAP * (len(scaled) - 1), height), BACKGROUND)
    x = 0
    for image in scaled:
        strip.paste(image, (x, 0))
        x += image.width + GAP
    return strip
