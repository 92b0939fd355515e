"""The photographs beside exported label maps: the bytes as they are where every reader sees the same pixels in them."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator

from PIL import Image

from diffseg.images.decode import ImageError, decode_image
from pipeline.output.source_images import read_samples
from pipeline.readers.samples import Sample, Shard, ShardError
from pipeline.storage import Storage

_ORIENTATION_TAG = 0x0112
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png"}
JPEG_QUALITY = 95


class PhotographError(ValueError):
    """The photograph of a row is not there any more, or is another one."""


class Photographs:
    """Those of one shard, asked for in the order of the shard; one is in memory at a time."""

    def __init__(self, shard: Shard, rows: Collection[int], store: Storage, image_field: str | None) -> None:
        self._samples = _until_error(read_samples(shard, rows, store, image_field) if rows else iter(()))
        self._next: tuple[int, Sample] | str | None = next(self._samples, None)

    def read(self, row: int, key: str) -> bytes:
        """The stored bytes of the image of this row. Raises PhotographError."""
        while isinstance(self._next, tuple) and self._next[0] < row:
            self._next = next(self._samples, None)
        if isinstance(self._next, str):
            raise PhotographError(self._next)
        if self._next is None or self._next[0] != row:
            raise PhotographError(f"there is no sample {row} in its shard any more")
        sample = self._next[1]
        if sample.key != key:
            raise PhotographError(f"sample {row} is {sample.key!r} now")
        if sample.image is None:
            raise PhotographError(sample.error)
        return sample.image


def _until_error(samples: Iterator[tuple[int, Sample]]) -> Iterator[tuple[int, Sample] | str]:
    try:
        yield from samples
    except (ShardError, FileNotFoundError, PermissionError) as error:
        yield str(error)


def for_any_reader(data: bytes, size: tuple[int, int], *, jpeg: bool) -> tuple[bytes, str]:
    """(bytes, extension) of a photograph that shows (height, width) pixels, as its label map has them.

    A JPEG or PNG of RGB or grey that is not turned by its EXIF stays as it is; another becomes a PNG. jpeg: a JPEG in
    any case. Raises PhotographError.
    """
    try:
        pixels = decode_image(data, min_side=1)
    except ImageError as error:
        raise PhotographError(str(error)) from error
    if pixels.shape[:2] != size:
        raise PhotographError(
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
