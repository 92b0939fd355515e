"""Decoders of ground-truth files: bytes to ids, before a layout turns ids into classes."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from scipy.io import loadmat

from diffseg.segmentation import IGNORE

MAX_PIXELS = 2**26
"""Largest label map that is decoded, in pixels."""

_TIFF_SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")

Segments = Mapping[int, int]
"""Category id by segment id for one panoptic PNG, as listed in its JSON file."""


class GroundTruthError(ValueError):
    """Ground truth that cannot be used; the message says what was read, what was expected, and what to do."""


def first_ids(ids: list[int] | tuple[int, ...]) -> str:
    """Return the first five ids as text."""
    return ", ".join(map(str, ids[:5])) + (" …" if len(ids) > 5 else "")


def read_ids(data: bytes, segments: Segments | None = None) -> list[np.ndarray]:
    """Read the ids of a single-channel PNG or TIFF, grey or with a palette, as one uint8 or uint16 [H, W] array."""
    if data.startswith(_TIFF_SIGNATURES):
        return [_read_tiff(data)]
    image = _open(data)
    if image.mode not in ("1", "L", "P", "I;16", "I"):
        raise GroundTruthError(
            f"is a PNG of mode {image.mode}; expected one channel of ids (8- or 16-bit grey, or a palette). Convert "
            "colours to ids first; for COCO's panoptic PNGs and for full ADE20K set --layout"
        )
    ids = _pixels(image)
    depth, is_grey = data[24], data[25] == 0
    if is_grey and 1 < depth < 8:
        ids = ids // (255 // (2**depth - 1))  # Pillow scales these values to the range 0 to 255
    return [ids.astype(np.uint8 if depth <= 8 else np.uint16)]


def _read_tiff(data: bytes) -> np.ndarray:
    try:
        image = Image.open(io.BytesIO(data), formats=("TIFF",))
    except Exception as error:  # Pillow's parsers raise many types for malformed bytes
        raise GroundTruthError(f"is a broken TIFF: {error}") from error
    _check_size(image)
    ids = _pixels(image)
    if image.mode not in ("1", "L", "P", "I;16", "I;16B", "I") or ids.min() < 0 or ids.max() > IGNORE:
        raise GroundTruthError(
            f"is a TIFF of mode {image.mode} with values from {ids.min()} to {ids.max()}; expected one channel of "
            f"integer ids from 0 to {IGNORE}"
        )
    return ids.astype(np.uint8 if image.mode in ("1", "L", "P") else np.uint16)


def _read_colours(data: bytes) -> np.ndarray:
    image = _open(data)
    if image.mode not in ("RGB", "RGBA"):
        raise GroundTruthError(f"is a PNG of mode {image.mode}; this layout encodes ids as RGB colours")
    return _pixels(image)[..., :3].astype(np.uint32)


def _open(data: bytes) -> PngImageFile:
    if not data.startswith(b"\x89PNG"):
        raise GroundTruthError(
            f"is not a PNG (it starts with {data[:8]!r}); expected a label map as PNG; the layout labels also "
            "reads TIFF. In tar and Parquet files, --truth-field names the member or column of the ground truth"
        )
    try:
        image = PngImageFile(io.BytesIO(data))
    except Exception as error:  # Pillow's parsers raise many types for malformed bytes
        raise GroundTruthError(f"is a broken PNG: {error}") from error
    _check_size(image)
    return image


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise GroundTruthError(f"declares {image.width} x {image.height} pixels; at most {MAX_PIXELS} are decoded")


def _pixels(image: Image.Image) -> np.ndarray:
    try:
        return np.asarray(image)
    except Exception as error:
        raise GroundTruthError(f"is a broken {image.format}: {error}") from error


def read_full_ade(data: bytes, segments: Segments | None) -> list[np.ndarray]:
    """Read the class from the red and green channels; blue numbers the instances."""
    colours = _read_colours(data)
    return [colours[..., 0] // 10 * 256 + colours[..., 1]]


def read_panoptic(data: bytes, segments: Segments | None) -> list[np.ndarray]:
    """Read segment ids from the three channels and map them to categories; pixels without a segment get category 0."""
    colours = _read_colours(data)
    ids, positions = np.unique(colours @ np.array([1, 256, 65536], np.uint32), return_inverse=True)
    categories = {0: 0, **(segments or {})}
    unknown = [int(i) for i in ids if int(i) not in categories]
    if unknown:
        raise GroundTruthError(
            f"has the segments {first_ids(unknown)}, which the JSON does not list; check that the JSON belongs to "
            "this folder"
        )
    return [np.array([categories[int(i)] for i in ids])[positions].reshape(colours.shape[:2])]


def read_bsds(data: bytes, segments: Segments | None) -> list[np.ndarray]:
    """Read the segmentation of each annotator from a MATLAB file."""
    try:
        cells = loadmat(io.BytesIO(data), variable_names=["groundTruth"])["groundTruth"]
        maps = [np.asarray(cell["Segmentation"][0, 0]) for cell in cells.ravel()]
    except Exception as error:
        raise GroundTruthError(f"is not a .mat file with groundTruth{{n}}.Segmentation: {error}") from error
    if not maps or any(ids.ndim != 2 or ids.dtype.kind not in "ui" for ids in maps):
        raise GroundTruthError("holds no segmentations, or some that are not integers [H, W]")
    return maps
