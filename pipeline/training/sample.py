"""Decode and augment a training sample: images and their label maps, cropped, mirrored and spliced together."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import torch
from PIL import Image

from diffseg.images.decode import decode_image
from pipeline.output.rows import decode_mask
from pipeline.storage import SourceError
from pipeline.training.settings import DatasetSettings
from pipeline.training.splice import EncodedSample, Tiles


class _ImageAndMask(TypedDict):
    key: str
    image: torch.Tensor
    mask: torch.Tensor


class TrainingSample(_ImageAndMask, total=False):
    """One sample of a `LabelDataset`.

    Attributes:
        key: Key of the sample.
        image: uint8 [3, size, size].
        mask: int64 [size, size], segment or class ids, and the ignore index.
        present: Only with `DatasetSettings.image_classes`: uint8 [C], 1 for the classes that the whole image shows,
            without the background.
    """

    present: torch.Tensor


def decode_sample(tiles: Tiles, settings: DatasetSettings, epoch: int) -> TrainingSample:
    """Decode the tiles of a sample, and apply a random crop and flip to each.

    The random numbers follow from seed, epoch, shard and row, so every worker would make the same sample. The segments
    of different tiles have different ids for target `segments`; classes mean the same in all tiles.

    Raises:
        SourceError: A source image and its label map differ in size.
    """
    first = tiles.samples[0]
    rng = first.random_numbers(settings, epoch)
    pixels = np.empty((settings.size, settings.size, 3), np.uint8)
    labels = np.empty((settings.size, settings.size), np.int32)
    next_id = 0
    for number, encoded in enumerate(tiles.samples):
        row, column = divmod(number, tiles.columns)
        at = _part(row, tiles.rows, settings.size), _part(column, tiles.columns, settings.size)
        shape = at[0].stop - at[0].start, at[1].stop - at[1].start
        pixels[at], labels[at] = _decode_tile(encoded, shape, settings, rng, first_id=next_id)
        if settings.target == "segments":
            next_id += max(encoded.targets.values(), default=-1) + 1
    return TrainingSample(
        key=first.key,
        image=torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
        mask=torch.from_numpy(labels.astype(np.int64)),
    )


def _part(number: int, count: int, size: int) -> slice:
    """Return the pixels of one of `count` nearly equal parts of a side."""
    return slice(size * number // count, size * (number + 1) // count)


def _decode_tile(
    encoded: EncodedSample,
    shape: tuple[int, int],
    settings: DatasetSettings,
    rng: np.random.Generator,
    *,
    first_id: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 [h, w, 3] pixels and int32 [h, w] labels of a random crop; `first_id` is added to segment ids."""
    image, mask = decode_image(encoded.image), decode_mask(encoded.mask)
    if image.shape[:2] != mask.shape:
        raise SourceError(
            f"{encoded.shard}: {encoded.key!r} has {image.shape[1]} x {image.shape[0]} pixels now, its label map "
            f"{mask.shape[1]} x {mask.shape[0]}; pass the location of the run's images as images="
        )
    table = np.full(np.iinfo(mask.dtype).max + 1, settings.ignore_index, np.int32)
    table[list(encoded.targets)] = [value + first_id for value in encoded.targets.values()]
    height, width = shape
    box = _random_box(rng, image.shape[0], image.shape[1], settings.crop, width / height)
    size = (width, height)
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0))
    labels = np.asarray(Image.fromarray(table[mask]).resize(size, Image.Resampling.NEAREST, box=box))
    if settings.flip and rng.random() < 0.5:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    return pixels, labels


def _random_box(
    rng: np.random.Generator, height: int, width: int, smallest: float, aspect: float
) -> tuple[float, float, float, float]:
    """Draw a box whose sides are `smallest` to 1 of the largest box; return (left, upper, right, lower) in pixels.

    Args:
        rng: Random numbers.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        smallest: Smallest share; with 1, the box is the largest one in the centre.
        aspect: Width of the box divided by its height.
    """
    box_width = min(width, height * aspect) * (rng.uniform(smallest, 1.0) if smallest < 1 else 1.0)
    box_height = box_width / aspect
    y, x = rng.random(2) if smallest < 1 else (0.5, 0.5)
    top, left = y * (height - box_height), x * (width - box_width)
    return left, top, left + box_width, top + box_height
