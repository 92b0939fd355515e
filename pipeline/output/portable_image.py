"""Source images beside label maps: stored bytes are kept if all readers decode them to the pixels of the label map.

Readers differ in what they do with an EXIF orientation, a palette or transparency. Any other image is re-encoded.
"""

from __future__ import annotations

import io

from PIL import Image

from diffseg.images.decode import ImageError, decode_image
from pipeline.output.source_images import SourceImageError

_ORIENTATION_TAG = 0x0112
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png"}
JPEG_QUALITY = 95


def portable_image(data: bytes, size: tuple[int, int], *, jpeg: bool) -> tuple[bytes, str]:
    """Return a source image in a form that all readers decode to the same pixels.

    A grey or RGB JPEG or PNG without transparency or EXIF rotation is kept; any other image is re-encoded as PNG.

    Args:
        data: Stored bytes of the source image.
        size: Height and width of its label map, in pixels.
        jpeg: Re-encode everything but JPEGs as JPEG.

    Returns:
        The bytes and the file extension.

    Raises:
        SourceImageError: The image cannot be decoded, or its size is not `size`.
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
        is_plain = image.mode in ("RGB", "L") and image.getexif().get(_ORIENTATION_TAG, 1) == 1
        kind = image.format if is_plain and "transparency" not in image.info else None
    if kind == "JPEG" or (kind == "PNG" and not jpeg):
        return data, _EXTENSIONS[kind]
    kind = "JPEG" if jpeg else "PNG"
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=JPEG_QUALITY)
    return buffer.getvalue(), _EXTENSIONS[kind]
