"""The pictures of the gallery: a small photograph and small segments to lay over it, many samples in a file.

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
"""Pixels of the longer side."""
JPEG_QUALITY = 80
MOST_SEGMENTS = 100
MOST_META = 2000
"""Characters of a sample's own fields."""


def make_tile(row: Mapping[str, Any], photographs: SourceImages | str) -> dict[str, Any]:
    """What the page is told of a labelled row beside the list of all rows, with its pictures in base64.

    photographs: those of its shard, or why there are none.
    """
    labels = decode_mask(row["mask"])
    names = {segment["id"]: segment_name(segment) for segment in row["segments"]}
    colours = segment_colours(1 + int(labels[labels != IGNORE].max(initial=0)), names)
    largest = sorted(row["segments"], key=lambda segment: -segment["area"])[:MOST_SEGMENTS]
    photograph = _photograph(row, photographs)
    return {
        "size": [row["width"], row["height"]],
        "mask": _base64(segments_picture(labels, colours), "PNG"),
        "photograph": None if isinstance(photograph, str) else _base64(photograph, "JPEG"),
        "why": photograph if isinstance(photograph, str) else "",
        "segments": [
            [segment["id"], segment["area"], segment["confidence"], names[segment["id"]], segment["name_score"], colour]
            for segment in largest
            for colour in [hexadecimal(colours[segment["id"]])]
        ],
        "meta": (row["meta"] or "")[:MOST_META],
    }


def segments_picture(labels: np.ndarray, colours: np.ndarray) -> Image.Image:
    """RGBA of at most SIDE pixels a side: colours with white borders, transparent where there is no segment.

    labels: uint16 [H, W], 65535 = ignore. colours: uint8 [K, 3] by label.
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
    """(height, width) of the picture of an image of this size."""
    scale = min(1.0, SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _photograph(row: Mapping[str, Any], photographs: SourceImages | str) -> Image.Image | str:
    if isinstance(photographs, str):
        return photographs
    try:
        pixels = decode_image(photographs.read(row["index"], row["key"]), min_side=1)
    except (SourceImageError, ImageError) as error:
        return str(error)
    if pixels.shape[:2] != (row["height"], row["width"]):
        return f"has {pixels.shape[1]} x {pixels.shape[0]} pixels now; labelled were {row['width']} x {row['height']}"
    height, width = small_size(*pixels.shape[:2])
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _base64(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
