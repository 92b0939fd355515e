"""From a stored image to RGB: one function, for every photograph that a data set may hold.

Sizes are checked before any pixel is decoded, the formats are a closed list, and whatever goes wrong inside Pillow
comes out as an ``ImageError`` with a status that a pipeline can count.
"""

from __future__ import annotations

import os
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Literal

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from diffseg.images.bounded_file import check_scans, open_bounded

# Made here and not by Image.open, whose own check for decompression bombs warns or raises at a limit that is global to
# the process. EPS, PDF and their like start other programs or hold no photographs.
_FORMATS: dict[str, Callable[[IO[bytes]], ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "PPM": PpmImageFile,
}

_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """An image that gives no pixels.

    Attributes:
        status: ``undecodable``, ``too_large`` or ``too_small``.
    """

    def __init__(self, status: Literal["undecodable", "too_large", "too_small"], message: str) -> None:
        super().__init__(status, message)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[1])


def decode_image(
    source: bytes | str | os.PathLike[str] | Image.Image, *, max_pixels: int = 2**26, min_side: int = 16
) -> np.ndarray:
    """Decode one image to RGB as a person would see it. Safe to call from several threads.

    The EXIF orientation is applied; transparent pixels lie on white; of an animation the first frame is taken. 16 bits
    are scaled to 8. Of 32-bit integers, values up to 65535 count as 16 bits; floats within [0, 1] are scaled by 255 and
    within [0, 255] rounded; any other range is stretched so that it fills 0 to 255.

    Args:
        source: the encoded bytes, the path of a file, or an opened PIL image (which stays as it is).
        max_pixels: of the size that the header declares; larger images are not decoded.
        min_side: in pixels; an image with a shorter side is refused.

    Returns:
        uint8 ``[H, W, 3]``, C-contiguous.

    Raises:
        ImageError: with its ``status``, for whatever is wrong with the image.
        OSError: when ``source`` is a path that cannot be opened.
    """
    if isinstance(source, Image.Image):
        _check_size(source.size, max_pixels, min_side)
        with _quiet():
            return _pixels(source.copy)
    with open_bounded(source) as file, _quiet():
        return _decode_file(file, max_pixels, min_side)


_WARNING_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_quiet_lock = threading.Lock()
_quiet_users = 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Pillow warns about one file (odd EXIF, metadata that it skips) among millions of them.

    ``warnings.catch_warnings`` is not safe with threads: it may put back the filters of another one. This counts its
    users, and touches no other filter.
    """
    global _quiet_users
    filters: list = warnings.filters  # type: ignore[assignment]
    with _quiet_lock:
        _quiet_users += 1
        if _WARNING_FILTER not in filters:
            filters.insert(0, _WARNING_FILTER)
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            filters = warnings.filters  # type: ignore[assignment]
            if _quiet_users == 0 and _WARNING_FILTER in filters:
                filters.remove(_WARNING_FILTER)


def _decode_file(file: IO[bytes], max_pixels: int, min_side: int) -> np.ndarray:
    image = _open(file)
    _check_size(image.size, max_pixels, min_side)

    def loaded() -> Image.Image:
        image.load()
        return image

    return _pixels(loaded)


def _open(file: IO[bytes]) -> ImageFile.ImageFile:
    """Read the header: the format and the declared size, no pixels."""
    prefix = file.read(16)
    if not prefix:
        raise ImageError("undecodable", "the file is empty (0 bytes)")
    reason = f"not an image of a known format ({', '.join(_FORMATS)}): it starts with {prefix!r}"
    for name, factory in _FORMATS.items():
        accept = Image.OPEN[name][1]
        # A text in place of True says what this build of Pillow lacks.
        accepted = accept(prefix) if accept else True
        if isinstance(accepted, str):
            reason = accepted
        elif accepted:
            file.seek(0)
            try:
                if name == "JPEG":
                    check_scans(file)
                return factory(file)
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                # Pillow's own way of saying "not mine": another format may claim the same prefix.
                reason = f"the {name} header is broken: {error}"
            except Exception as error:
                raise _image_error(error, f"the {name} header cannot be read") from error
    raise ImageError("undecodable", reason)


def _check_size(size: tuple[int, int], max_pixels: int, min_side: int) -> None:
    width, height = size
    if min(size) < min_side:
        raise ImageError("too_small", f"{width} x {height} pixels: the shorter side must have at least {min_side}")
    if width * height > max_pixels:
        pixels = f"{width} x {height} = {width * height} pixels"
        raise ImageError("too_large", f"the header declares {pixels}; at most {max_pixels} are decoded")


def _pixels(load: Callable[[], Image.Image]) -> np.ndarray:
    try:
        image = load()
        orientation = _orientation(image)
        rgb = _to_rgb(image)
        if orientation in _TRANSPOSE:
            rgb = rgb.transpose(_TRANSPOSE[orientation])
        return np.array(rgb, order="C")
    except ImageError:
        raise
    except Exception as error:
        raise _image_error(error, "the pixels cannot be decoded") from error


def _image_error(error: Exception, what: str) -> ImageError:
    if isinstance(error, MemoryError):
        return ImageError("too_large", f"{what}: not enough memory")
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return ImageError("too_large", f"{what}: {error}")
    return ImageError("undecodable", f"{what}: {error or type(error).__name__}")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF blocks are common in photographs whose pixels are fine
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey_to_8_bits(image)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # the only way that Pillow knows out of premultiplied grey
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_to_8_bits(image: Image.Image) -> np.ndarray:
    """uint8 [H, W] of an image with more than 8 bits a pixel, by the rules of ``decode_image``."""
    grey: np.ndarray = np.asarray(image)
    if not np.isfinite(grey).all():
        raise ImageError("undecodable", "the image holds NaN or infinite values")
    low, high = float(grey.min()), float(grey.max())
    if grey.dtype.kind in "ui" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    elif grey.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif grey.dtype.kind == "f" and low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    scale = 255.0 / max(high - low, 1e-30)
    dtype = np.float32 if grey.dtype.itemsize <= 2 else np.float64  # half the memory where it is exact
    return np.rint(np.subtract(grey, low, dtype=dtype) * dtype(scale)).astype(np.uint8)
