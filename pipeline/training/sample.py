"""Decode and augment one training sample: a source image and its label map, cropped and mirrored together."""

from __future__ import annotations

import zlib
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image

from diffseg.images.decode import decode_image
from pipeline.output.rows import decode_mask
from pipeline.storage import SourceError
from pipeline.training.settings import DatasetSettings


class TrainingSample(TypedDict):
    """One sample of a `LabelDataset`.

    Attributes:
        key: Key of the sample.
        image: uint8 [3, size, size].
        mask: int64 [size, size], segment or class ids, and the ignore index.
    """

    key: str
    image: torch.Tensor
    mask: torch.Tensor


class EncodedSample(NamedTuple):
    """A source image and its label map as they are stored.

    Attributes:
        key: Key of the sample.
        shard: Name of the label shard.
        row: Index of the row in the shard.
        image: Stored bytes of the source image.
        mask: PNG of the label map.
        targets: Mask value by segment id; all other pixels are ignored.
    """

    key: str
    shard: str
    row: int
    image: bytes
    mask: bytes
    targets: dict[int, int]


def decode_sample(encoded: EncodedSample, settings: DatasetSettings, epoch: int) -> TrainingSample:
    """Decode a sample and apply its random crop and flip.

    The random numbers follow from seed, epoch, shard and row, so every worker would make the same sample.

    Raises:
        SourceError: The source image and the label map differ in size.
    """
    name_hash = zlib.crc32(encoded.shard.encode())
    rng = np.random.default_rng([settings.seed, epoch, name_hash, encoded.row])
    image, mask = decode_image(encoded.image), decode_mask(encoded.mask)
    if image.shape[:2] != mask.shape:
        raise SourceError(
            f"{encoded.shard}: {encoded.key!r} has {image.shape[1]} x {image.shape[0]} pixels now, its label map "
            f"{mask.shape[1]} x {mask.shape[0]}; pass the location of the run's images as images="
        )
    table = np.full(np.iinfo(mask.dtype).max + 1, settings.ignore_index, np.int32)
    table[list(encoded.targets)] = list(encoded.targets.values())
    box = _random_square(rng, image.shape[0], image.shape[1], settings.crop)
    size = (settings.size, settings.size)
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0))
    labels = np.asarray(Image.fromarray(table[mask]).resize(size, Image.Resampling.NEAREST, box=box))
    if settings.flip and rng.random() < 0.5:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    return TrainingSample(
        key=encoded.key,
        image=torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
        mask=torch.from_numpy(labels.astype(np.int64)),
    )


def _random_square(
    rng: np.random.Generator, height: int, width: int, smallest: float
) -> tuple[float, float, float, float]:
    """Draw a square whose side is `smallest` to 1 of the shorter side; return (left, upper, right, lower) in pixels.

    If `smallest` is 1, the square is the centre square.
    """
    side = min(height, width) * (rng.uniform(smallest, 1.0) if smallest < 1 else 1.0)
    y, x = rng.random(2) if smallest < 1 else (0.5, 0.5)
    top, left = y * (height - side), x * (width - side)
    return left, top, left + side, top + side
