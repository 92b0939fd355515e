"""Decode stored images of any supported format to RGB, safely on untrusted files.

Sizes are checked before any pixel is decoded, only a fixed list of formats is accepted, and any failure inside Pillow
is raised as an `ImageError` with a status that a pipeline can count.
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
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from diffseg.images.bounded_file import EndlessFileError, check_scans, open_bounded
from diffseg.images.plugins import MissingPluginError, is_heic, is_jxl, jxl_size, open_heic, open_jxl
from diffseg.images.png_chunks import without_large_chunks

# Images are opened by these classes instead of Image.open, whose check for decompression bombs warns or raises at a
# limit that is global to the process. EPS, PDF and similar formats are left out: they start other programs or hold no
# photographs.
_FORMATS: dict[str, Callable[[IO[bytes]], ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "PPM": PpmImageFile,
    "AVIF": AvifImageFile,
    "JPEG2000": Jpeg2KImageFile,
    "HEIC": open_heic,
    "JPEG XL": open_jxl,
}
_ACCEPT: dict[str, Callable[[bytes], bool]] = {"HEIC": is_heic, "JPEG XL": is_jxl}
"""Recognises the formats that are not registered with Pillow, by the first bytes."""
_HEADER_BYTES = 2**16
"""Bytes in which the size of a JPEG XL must be declared."""

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
    """An image that cannot be decoded or has an unsuitable size.

    Attributes:
        status: `undecodable`, `too_large` or `too_small`.
    """

    def __init__(self, status: Literal["undecodable", "too_large", "too_small"], message: str) -> None:
        super().__init__(status, message)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[1])


def decode_image(
    source: bytes | str | os.PathLike[str] | Image.Image, *, max_pixels: int = 2**26, min_side: int = 16
) -> np.ndarray:
    """Decode one image to RGB as a person would see it. Several threads may call this at the same time.

    The EXIF orientation is applied, transparent pixels are composited on white, and the first frame of an animation is
    taken. Values of 16 bits are scaled to 8 bits, and 32-bit integers within [0, 65535] count as 16-bit values. Floats
    within [0, 1] are scaled by 255, and floats within [0, 255] are rounded. Any other range is stretched to fill 0 to
    255.

    Args:
        source: The encoded bytes, the path of a file, or an opened PIL image, which is not changed.
        max_pixels: Largest size that the header may declare; larger images are not decoded.
        min_side: Smallest length of the shorter side in pixels.

    Returns:
        uint8 [H, W, 3], C-contiguous.

    Raises:
        ImageError: The image cannot be decoded or has an unsuitable size; its `status` says which.
        OSError: `source` is a path that cannot be opened.
    """
    if isinstance(source, Image.Image):
        _check_size(source.size, max_pixels, min_side)
        with _silence_pillow():
            return _pixels(source.copy)
    with open_bounded(source) as file, _silence_pillow():
        return _decode_file(file, max_pixels, min_side)


_WARNING_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_silence_lock = threading.Lock()
_silence_users = 0


@contextmanager
def _silence_pillow() -> Iterator[None]:
    """Silence Pillow's warnings about single files, such as odd EXIF or skipped metadata, in a run over millions.

    `warnings.catch_warnings` is not thread-safe, because it may restore the filters of another thread. This context
    manager counts its users and changes no other filter.
    """
    global _silence_users
    filters: list = warnings.filters  # type: ignore[assignment]
    with _silence_lock:
        _silence_users += 1
        if _WARNING_FILTER not in filters:
            filters.insert(0, _WARNING_FILTER)
    try:
        yield
    finally:
        with _silence_lock:
            _silence_users -= 1
            filters = warnings.filters  # type: ignore[assignment]
            if _silence_users == 0 and _WARNING_FILTER in filters:
                filters.remove(_WARNING_FILTER)


def _decode_file(file: IO[bytes], max_pixels: int, min_side: int) -> np.ndarray:
    """Decode an open file, and check its declared size before any pixel is read."""
    try:
        return _decode_opened(file, max_pixels, min_side)
    except ImageError as error:
        try:
            smaller = without_large_chunks(file) if error.status == "undecodable" else None
        except EndlessFileError:
            smaller = None
        if smaller is None:
            raise
        return _decode_opened(smaller, max_pixels, min_side)


def _decode_opened(file: IO[bytes], max_pixels: int, min_side: int) -> np.ndarray:
    image = _open(file, lambda size: _check_size(size, max_pixels, min_side))
    _check_size(image.size, max_pixels, min_side)

    def loaded() -> Image.Image:
        image.load()
        return image

    return _pixels(loaded)


def _open(file: IO[bytes], check_size: Callable[[tuple[int, int]], None]) -> ImageFile.ImageFile:
    """Read the header, with the format and the declared size but no pixels.

    Args:
        file: The file at its start.
        check_size: Called with the size before a file is opened whose pixels are decoded with the header.
    """
    prefix = file.read(16)
    if not prefix:
        raise ImageError("undecodable", "the file is empty (0 bytes)")
    reason = f"not an image of a known format ({', '.join(_FORMATS)}): it starts with {prefix!r}"
    for name, factory in _FORMATS.items():
        accept = _ACCEPT.get(name) or Image.OPEN[name][1]
        # A string instead of True says what this build of Pillow lacks.
        accepted = accept(prefix) if accept else True
        if isinstance(accepted, str):
            reason = accepted
        elif accepted:
            file.seek(0)
            try:
                if name == "JPEG":
                    check_scans(file)
                if name == "JPEG XL":
                    check_size(jxl_size(file.read(_HEADER_BYTES)))
                    file.seek(0)
                return factory(file)
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                # Pillow raises these for a file of another format, and another format may claim the same prefix.
                reason = f"the {name} header is broken: {error}"
            except MissingPluginError as error:
                reason = f"a {name} image: {error}"
            except ImageError:
                raise
            except Exception as error:
                raise _image_error(error, f"the {name} header cannot be read") from error
    raise ImageError("undecodable", reason)


def _check_size(size: tuple[int, int], max_pixels: int, min_side: int) -> None:
    """Raise ImageError for a size (width, height) outside the bounds."""
    width, height = size
    if min(size) < min_side:
        raise ImageError("too_small", f"{width} x {height} pixels: the shorter side must have at least {min_side}")
    if width * height > max_pixels:
        pixels = f"{width} x {height} = {width * height} pixels"
        raise ImageError("too_large", f"the header declares {pixels}; at most {max_pixels} are decoded")


def _pixels(load: Callable[[], Image.Image]) -> np.ndarray:
    """Load an image, apply its orientation and convert it to uint8 [H, W, 3]."""
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
    """Convert an error of Pillow to an ImageError with the fitting status."""
    if isinstance(error, MemoryError):
        return ImageError("too_large", f"{what}: not enough memory")
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return ImageError("too_large", f"{what}: {error}")
    return ImageError("undecodable", f"{what}: {error or type(error).__name__}")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 means upright."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF blocks are common in images whose pixels are fine
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, on white where it is transparent."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey_to_8_bits(image)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # Pillow converts premultiplied grey to no other mode
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_to_8_bits(image: Image.Image) -> np.ndarray:
    """Convert an image with more than 8 bits per pixel to uint8 [H, W], by the rules of `decode_image`."""
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
    dtype = np.float32 if grey.dtype.itemsize <= 2 else np.float64  # float32 is exact here and halves the memory
    return np.rint(np.subtract(grey, low, dtype=dtype) * dtype(scale)).astype(np.uint8)
