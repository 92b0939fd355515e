"""The pictures of the gallery: a source image and the segments to draw over it, in two sizes.

The page draws the segments itself, so that it can highlight one of them. Each picture therefore has a map of regions:
0 for pixels in no segment, k for the k-th largest segment up to `MAX_SEGMENTS`, and `OTHERS` for all smaller segments.

Axes: H and W pixels.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from diffseg import IGNORE
from diffseg.images.decode import ImageError, decode_image
from pipeline.output.reader import segment_name
from pipeline.output.rows import decode_mask
from pipeline.output.source_images import SourceImageError, SourceImages
from pipeline.report.colours import find_contacts, segment_colours
from pipeline.report.levels import level_data
from pipeline.report.packing import SIDE, packed, reduced

FULL_SIDE = 2048
"""Longest side of a picture in full size, in pixels; larger images are reduced to it."""
JPEG_QUALITY = 80
FULL_JPEG_QUALITY = 90
MAX_SEGMENTS = 254
"""Segments of an image that are listed, the largest first."""
OTHERS = 255
"""Region of all segments that are not listed."""
MAX_META_LENGTH = 2000
"""Characters of a sample's metadata that are shown."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """What the page needs to show a labelled row.

    Attributes:
        data: For the gallery, as `loadTile` of data.js expects it.
        full: The pictures in full size; None if they are not wanted, or not larger than those of the gallery.
        contacts: Pairs of names whose segments touch, in alphabetical order.
    """

    data: dict[str, Any]
    full: dict[str, Any] | None = None
    contacts: Counter[tuple[str, str]] = field(default_factory=Counter)


def make_tile(
    row: Mapping[str, Any],
    source_images: SourceImages | str,
    *,
    full: bool = False,
    scores: Mapping[str, Sequence[float | None]] | None = None,
) -> Tile:
    """Make the pictures of a labelled row.

    Args:
        row: A labelled row.
        source_images: Source images of its shard, or why they are missing.
        full: Whether to make the pictures in full size as well.
        scores: The row's scores by evaluation, in the order of `IMAGE_SCORES`.
    """
    segments = sorted(row["segments"], key=lambda segment: -segment["area"])[:MAX_SEGMENTS]
    names = {region: segment_name(segment) for region, segment in enumerate(segments, 1)}
    regions = region_map(decode_mask(row["mask"]), [segment["id"] for segment in segments])
    image = _source_image(row, source_images)
    small = reduced(regions, SIDE)
    contacts = find_contacts(small)
    # The colour of a name depends on all images of the page, so row_list.py chooses it at the end.
    colours = segment_colours([region for region, name in names.items() if name is None], contacts)
    data = {
        "size": [row["width"], row["height"]],
        **_pictures(small, image, JPEG_QUALITY),
        "why": image if isinstance(image, str) else "",
        "full": full and max(regions.shape) > SIDE,
        "segments": [
            [segment["id"], segment["area"], segment["confidence"], names[k], segment["name_score"], colours.get(k)]
            for k, segment in enumerate(segments, 1)
        ],
        "scores": scores or {},
        "meta": (row["meta"] or "")[:MAX_META_LENGTH],
    }
    if "merges" in row and (levels := level_data(row)):
        data["levels"] = levels
    return Tile(
        data=data,
        full=_pictures(reduced(regions, FULL_SIDE), image, FULL_JPEG_QUALITY) if data["full"] else None,
        contacts=_contacts_of_names(contacts, names),
    )


def region_map(labels: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Return the region of each pixel, uint8 [H, W].

    Args:
        labels: uint16 [H, W]; 65535 is ignored.
        ids: Labels of the listed segments, the largest segment first.
    """
    region_of = np.full(2**16, OTHERS, np.uint8)
    region_of[IGNORE] = 0
    region_of[list(ids)] = np.arange(1, len(ids) + 1)
    return region_of[labels]


def _pictures(regions: np.ndarray, image: np.ndarray | str, quality: int) -> dict[str, Any]:
    """Return the map of regions, compressed by zlib, and the source image in its size, as base64."""
    height, width = regions.shape
    photograph = None
    if not isinstance(image, str):
        buffer = io.BytesIO()
        picture = Image.fromarray(image)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
        picture.save(buffer, "JPEG", quality=quality)
        photograph = base64.b64encode(buffer.getvalue()).decode()
    return {"pixels": [width, height], "regions": packed(regions), "photograph": photograph}


def _source_image(row: Mapping[str, Any], source_images: SourceImages | str) -> np.ndarray | str:
    """Return the source image of a row, uint8 [H, W, 3], or why it is missing."""
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
    return pixels


def _contacts_of_names(
    contacts: Mapping[tuple[int, int], int], names: Mapping[int, str | None]
) -> Counter[tuple[str, str]]:
    """Return each pair of different names whose segments touch, once."""
    if not any(names.values()):
        return Counter()
    pairs = {(names.get(one), names.get(other)) for one, other in contacts}
    return Counter({(min(a, b), max(a, b)) for a, b in pairs if a and b and a != b})
