"""The photographs beside exported label maps: the bytes as they are where every reader sees the same pixels in them."""

from __future__ import annotations

import io

from PIL import Image

from diffseg.images.decode import ImageError, decode_image
from pipeline.output.source_images import SourceImageError

_ORIENTATION_TAG = 0x0112
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png"}
JPEG_QUALITY = 95


def for_any_reader(data: bytes, size: tuple[int, int], *, jpeg: bool) -> tuple[bytes, str]:
    """(bytes, extension) of a photograph that shows (height, width) pixels, as its label map has them.

    A JPEG or PNG of RGB or grey that is not turned by its EXIF stays as it is; another becomes a PNG. jpeg: a JPEG in
    any case. Raises SourceImageError.
    """
    try:
        pixels = decode_image(data, min_side=1)
    except ImageError as error:
        raise SourceImageError(str(error)) from error
    if pixels.shape[:2] != size:
        raise SourceImageError(
            f"has {pixels.shape[1]} x {pixels.shape[0]} pixels now, the label map {size[1]} x {size[0]}"
        )
    with Image.open(io.BytesIO(data)) as image:
        plain = image.mode in ("RGB", "L") and image.getexif().get(_ORIENTATION_TAG, 1) == 1
        kind = image.format if plain and "transparency" not in image.info else None
    if kind == "JPEG" or (kind == "PNG" and not jpeg):
        return data, _EXTENSIONS[kind]
    kind = "JPEG" if jpeg else "PNG"
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=JPEG_QUALITY)
    return buffer.getvalue(), _EXTENSIONS[kind]
