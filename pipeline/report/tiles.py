"""The pictures of the gallery: a small source image, and small segments to draw over it.

Axes: H and W pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from diffseg import IGNORE
from diffseg.drawing.overlay import hexadecimal, segment_colours
from diffseg.images.decode import ImageError, decode_image
from diffseg.segmentation import borders
from pipeline.output.reader import segment_name
from pipeline.output.rows import decode_mask
from pipeline.output.source_images import SourceImageError, SourceImages

SIDE = 256
"""Longer side of a picture, in pixels."""
JPEG_QUALITY = 80
MAX_SEGMENTS = 100
"""Segments of an image that are listed, the largest first."""
MAX_META_LENGTH = 2000
"""Characters of a sample's metadata that are shown."""


def make_tile(row: Mapping[str, Any], source_images: SourceImages | str) -> dict[str, Any]:
    """Return what the page needs to show a labelled row, with its pictures as base64.

    Args:
        row: A labelled row.
        source_images: Source images of its shard, or why there are none.
    """
    labels = decode_mask(row["mask"])
    names = {segment["id"]: segment_name(segment) for segment in row["segments"]}
    colours = segment_colours(1 + int(labels[labels != IGNORE].max(initial=0)), names)
    largest = sorted(row["segments"], key=lambda segment: -segment["area"])[:MAX_SEGMENTS]
    image = _small_source_image(row, source_images)
    return {
        "size": [row["width"], row["height"]],
        "mask": _base64(segments_picture(labels, colours), "PNG"),
        "photograph": None if isinstance(image, str) else _base64(image, "JPEG"),
        "why": image if isinstance(image, str) else "",
        "segments": [
            [segment["id"], segment["area"], segment["confidence"], names[segment["id"]], segment["name_score"], colour]
            for segment in largest
            for colour in [hexadecimal(colours[segment["id"]])]
        ],
        "meta": (row["meta"] or "")[:MAX_META_LENGTH],
    }


def segments_picture(labels: np.ndarray, colours: np.ndarray) -> Image.Image:
    """Draw segments in their colours with white borders; pixels in no segment are transparent.

    Args:
        labels: uint16 [H, W]; 65535 is ignored.
        colours: Colour of each label, uint8 [K, 3].

    Returns:
        An RGBA picture with sides of at most `SIDE` pixels.
    """
    height, width = small_size(*labels.shape)
    rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(int)
    small = labels[rows][:, columns]
    ignored = small == IGNORE
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[..., :3] = colours[np.where(ignored, 0, small)]
    pixels[borders(small), :3] = 255
    pixels[..., 3] = np.where(ignored, 0, 255)
    return Image.fromarray(pixels)


def small_size(height: int, width: int) -> tuple[int, int]:
    """Return the height and width of the picture of an image of this size."""
    scale = min(1.0, SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _small_source_image(row: Mapping[str, Any], source_images: SourceImages | str) -> Image.Image | str:
    """Return the resized source image of a row, or why there is none."""
    if isinstance(source_images, str):
        return source_images
    try:
        pixels = decode_image(source_images.read(row["index"], row["key"]), min_side=1)
    except (SourceImageError, ImageError) as error:
        return str(error)
    if pixels.shape[:2] != (row["height"], row["width"]):
        return (
            f"has {pixels.shape[1]} x {pixels.shape[0]} pixels now, and had {row['width']} x {row['height']} in the run"
        )
    height, width = small_size(*pixels.shape[:2])
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _base64(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
