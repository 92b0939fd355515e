"""Draws which samples are spliced into one: a grid of tiles, each with another image and its label map.

Wu and others, "DiffuMask", ICCV 2023, section 3.4, splice synthetic images of one object into grids of up to 8 x 8, so
that a network sees objects of many sizes and beside each other. `pipeline.training.sample` decodes the tiles.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.training.settings import DatasetSettings


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

    def random_numbers(self, settings: DatasetSettings, epoch: int, *purpose: int) -> np.random.Generator:
        """Return a generator that depends on seed, epoch, shard and row alone, so every worker has the same one."""
        return np.random.default_rng([settings.seed, epoch, zlib.crc32(self.shard.encode()), self.row, *purpose])


class Tiles(NamedTuple):
    """What one training sample is made of.

    Attributes:
        rows: Rows of the grid; 1 for a sample that is not spliced.
        columns: Columns of the grid.
        samples: The sample of each tile, row by row; the first one gives the training sample its key.
    """

    rows: int
    columns: int
    samples: tuple[EncodedSample, ...]


class TileDrawer:
    """Draws the tiles of each sample of an epoch among the samples that are in memory.

    The draw depends on the sample and on the order in which the epoch is read, both of which follow from seed, epoch
    and rank. A reader that starts in the middle of an epoch therefore draws the same tiles.

    Args:
        settings: Largest grid, and share of samples that are spliced.
        epoch: The epoch.
    """

    def __init__(self, settings: DatasetSettings, epoch: int) -> None:
        self._settings, self._epoch = settings, epoch
        largest = settings.splice
        self._grids = [(rows, columns) for rows in range(1, largest + 1) for columns in range(1, largest + 1)][1:]
        self._recent: deque[EncodedSample] = deque(maxlen=largest**2)

    def draw(self, sample: EncodedSample, others: Sequence[EncodedSample]) -> Tiles:
        """Return the tiles of a sample.

        Args:
            sample: The next sample of the epoch.
            others: Samples that will follow, in any order. Samples that came shortly before are used too.
        """
        if not self._grids:
            return Tiles(1, 1, (sample,))
        rng = sample.random_numbers(self._settings, self._epoch, 1)
        pool = [*others, *self._recent]
        self._recent.append(sample)
        if not pool or rng.random() >= self._settings.splice_share:
            return Tiles(1, 1, (sample,))
        rows, columns = self._grids[rng.integers(len(self._grids))]
        count = rows * columns - 1
        chosen = rng.choice(len(pool), size=count, replace=len(pool) < count)
        return Tiles(rows, columns, (sample, *(pool[i] for i in chosen)))
