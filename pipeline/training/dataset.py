"""Source images and their label maps as training samples: each once per epoch, over any number of ranks and workers.

An epoch is a list of rows: the label shards in an order drawn for the epoch, and within a shard its rows in order.
Ranks, and within a rank the workers of its data loader, take equal contiguous parts of that list, so that no row is
read twice, and each shuffles its part in a buffer. Ranks can share each batch of the epoch instead. The order follows
from (seed, epoch) alone, so reading can start at any point of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from diffseg.segmentation import BACKGROUND
from pipeline.output.commit import LabelShard
from pipeline.output.keep import read_kept
from pipeline.output.levels import RunCut
from pipeline.output.manifest import Manifest, require_manifest
from pipeline.output.reader import label_rows
from pipeline.output.records import read_run_commits
from pipeline.output.source_images import find_source_shards, read_samples
from pipeline.storage import SourceError, Storage
from pipeline.training.sample import TrainingSample, decode_sample
from pipeline.training.settings import DatasetSettings, RowFilter
from pipeline.training.splice import EncodedSample, TileDrawer, Tiles

__all__ = ["DatasetSettings", "LabelDataset", "RowFilter", "TrainingSample"]


class _RowRange(NamedTuple):
    """Rows `start` to `stop` of the accepted rows of a label shard."""

    shard: LabelShard
    start: int
    stop: int


class LabelDataset(IterableDataset):
    """The rows of a label run with their source images, for a `torch.utils.data.DataLoader` with any number of workers.

    Every rank yields the same number of samples, so that no rank waits for another: up to world_size − 1 rows are left
    out of an epoch (with `share_batches`, for each worker of the data loader), and different rows in every epoch.

    Args:
        out: OUT of a label run, a folder or any fsspec URL.
        settings: Which samples are yielded, and how they are augmented; None for the defaults.
        images: Folder or URL of the source images, if they are no longer at the location in run.json.
        rank: Rank of this process; by default that of torch.distributed if it is initialised, else 0.
        world_size: Number of ranks; by default that of torch.distributed if it is initialised, else 1.
        options: fsspec storage options for both URLs.
        share_batches: Whether ranks share each batch of world_size times the batch size given to `start_at`, and the
            order of samples is that of one rank with so large a batch. Every rank then reads all stored images, but
            decodes only its own. By default each rank reads its own rows, and the order depends on world_size.
        keep: Whether to use only the rows that `diffseg filter` has kept, as its table in OUT says.

    Raises:
        SourceError: The run, its rows or its source images do not exist, the run has no classes for target `classes`,
            or OUT has no table of `diffseg filter` for these labels. Iterating raises it for a source image that is not
            the one that was labelled.
        ValueError: `rank` is not below `world_size`.
    """

    def __init__(
        self,
        out: str,
        settings: DatasetSettings | None = None,
        *,
        images: str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        options: Mapping[str, Any] | None = None,
        share_batches: bool = False,
        keep: bool = False,
    ) -> None:
        self.rank, self.world_size = _rank_and_world_size(rank, world_size)
        self._share_batches = share_batches
        self._epoch, self._skipped_batches, self._batch_size = 0, 0, 1
        self._out = Storage(url=out, options=options)
        manifest = require_manifest(self._out)
        settings = settings or DatasetSettings()
        if keep:
            selection = replace(settings.rows.selection, kept=read_kept(self._out, manifest))
            settings = replace(settings, rows=replace(settings.rows, selection=selection))
        self.settings = settings
        self.fingerprint, self._names = manifest.fingerprint, manifest.settings.get("naming", {}).get("names", ())
        if settings.target == "classes" and not self._names:
            raise SourceError(f"{self._out.redacted}: its segments have no names, so there are no classes to train on")
        self._image_field = manifest.settings["image_field"]
        level = settings.level
        self._cut = None if level is None else RunCut.of(level, manifest, self._out.redacted)
        self._sources = find_source_shards(manifest, self._out, images, out=self._out)
        self._index = self._read_index(manifest)
        if len(self) == 0:
            raise SourceError(
                f"{self._out.redacted}: no row is left for each of {self.world_size} ranks with {settings.rows}"
            )

    def _read_index(self, manifest: Manifest) -> dict[LabelShard, np.ndarray]:
        """Return the indices of the accepted rows, int32, by label shard."""
        columns = sorted({"index", *self.settings.rows.columns})
        accepts = self.settings.rows.accepts
        index = {
            shard: np.array([row["index"] for row in self._rows(shard, columns) if accepts(row)], np.int32)
            for shard in sorted(read_run_commits(self._out, manifest).done)
        }
        missing = [shard for shard, rows in index.items() if len(rows) and shard not in self._sources]
        if missing:
            raise SourceError(
                f"{missing[0]}: its source images are no longer at the run's source; pass their location as images="
            )
        return index

    @property
    def classes(self) -> int:
        """Number of classes including the background; 0 for a run without names."""
        return len(self._names) + 1 if self._names else 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class by its number; empty for a run without names."""
        return (BACKGROUND, *self._names) if self._names else ()

    def __len__(self) -> int:
        """Return the number of samples per epoch on this rank, over all its workers."""
        return self.rows // self.world_size

    @property
    def rows(self) -> int:
        """Number of rows that are used, over all ranks."""
        return sum(map(len, self._index.values()))

    def start_at(self, epoch: int, *, batches: int = 0, batch_size: int = 1) -> None:
        """Start the next iteration in an epoch after some of its batches.

        A data loader takes one batch from each of its workers in turn. Skipped samples are not decoded.

        Args:
            epoch: The epoch, from 0.
            batches: Number of the data loader's batches to skip.
            batch_size: Batch size of the data loader.

        Raises:
            ValueError: A number is out of range.
        """
        if min(epoch, batches) < 0 or batch_size < 1:
            raise ValueError(f"epoch={epoch}, batches={batches}, batch_size={batch_size}: expected at least 0, 0 and 1")
        self._epoch, self._skipped_batches, self._batch_size = epoch, batches, batch_size

    def __iter__(self) -> Iterator[TrainingSample]:
        info = get_worker_info()
        number, workers = (0, 1) if info is None else (info.id, info.num_workers)
        # A data loader starts with its first worker, so that worker must read the part of the one whose turn is next.
        worker = (number + self._skipped_batches) % workers
        batches = self._skipped_batches // workers + (worker < self._skipped_batches % workers)
        rank = 0 if self._share_batches else self.rank
        rng = np.random.default_rng([self.settings.seed, self._epoch, rank, worker])
        shuffled = self._shuffle(self._read(self._row_ranges(worker, workers)), rng)
        if self._share_batches:
            shuffled = self._own_parts(shuffled)
        for tiles in islice(shuffled, batches * self._batch_size, None):
            sample = decode_sample(tiles, self.settings, self._epoch)
            if self.settings.image_classes:
                sample["present"] = self._present(tiles)
            yield sample

    def _present(self, tiles: Tiles) -> torch.Tensor:
        """Return which classes the whole images of a sample show, uint8 [C], without the background."""
        shown = {class_id for encoded in tiles.samples for class_id in encoded.targets.values()}
        return torch.tensor([number in shown for number in range(1, self.classes)], dtype=torch.uint8)

    def _row_ranges(self, worker: int, workers: int) -> list[_RowRange]:
        """Return the part of the epoch that this worker reads."""
        shards = sorted(self._index)
        order = np.random.default_rng([self.settings.seed, self._epoch]).permutation(len(shards))
        first, count = (0, self.rows) if self._share_batches else (self.rank * len(self), len(self))
        start, stop = (first + count * boundary // workers for boundary in (worker, worker + 1))
        ranges, offset = [], 0
        for shard in (shards[i] for i in order):
            count = len(self._index[shard])
            if start < offset + count and offset < stop:
                ranges.append(_RowRange(shard, max(0, start - offset), min(count, stop - offset)))
            offset += count
        return ranges

    def _read(self, ranges: Sequence[_RowRange]) -> Iterator[EncodedSample]:
        columns = ("key", "index", "mask", "segments")
        for shard, start, stop in ranges:
            wanted = set(self._index[shard][start:stop].tolist())
            rows = (row for row in self._rows(shard, columns) if row["index"] in wanted)
            samples = read_samples(self._sources[shard], wanted, self._out, self._image_field)
            for row, (index, sample) in zip(rows, samples, strict=True):
                if (index, sample.key) != (row["index"], row["key"]) or sample.image is None:
                    raise SourceError(
                        f"{shard}: sample {row['index']} was {row['key']!r} when it was labelled and is now "
                        f"{sample.key!r} ({sample.error or 'an image'}); pass the location of the run's images as "
                        "images="
                    )
                targets = self._targets(row["segments"])
                yield EncodedSample(row["key"], shard, index, sample.image, row["mask"], targets)

    def _rows(self, shard: LabelShard, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield these columns of a label shard at the level of the settings."""
        return label_rows(self._out, shard, columns, self._cut)

    def _targets(self, segments: Sequence[Mapping[str, Any]]) -> dict[int, int]:
        confident = [s for s in segments if s["confidence"] >= self.settings.rows.segment_confidence]
        if self.settings.target == "segments":
            return {s["id"]: s["id"] for s in confident}
        return {s["id"]: s["class_id"] for s in confident if s["class_id"] is not None and s["class_id"] >= 0}

    def _shuffle(self, samples: Iterator[EncodedSample], rng: np.random.Generator) -> Iterator[Tiles]:
        buffer: list[EncodedSample] = []
        drawer = TileDrawer(self.settings, self._epoch)
        for sample in samples:
            buffer.append(sample)
            if len(buffer) >= self.settings.shuffle_buffer:
                yield drawer.draw(_pop_random(buffer, rng), buffer)
        while buffer:
            yield drawer.draw(_pop_random(buffer, rng), buffer)

    def _own_parts(self, samples: Iterator[Tiles]) -> Iterator[Tiles]:
        """Yield this rank's part of each batch of all ranks, and of what is left after the last whole one."""
        while batch := list(islice(samples, self.world_size * self._batch_size)):
            size = len(batch) // self.world_size
            yield from batch[self.rank * size : (self.rank + 1) * size]


def _rank_and_world_size(rank: int | None, world_size: int | None) -> tuple[int, int]:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if rank is None:
        rank = torch.distributed.get_rank() if distributed else 0
    if world_size is None:
        world_size = torch.distributed.get_world_size() if distributed else 1
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank}, world_size={world_size}: expected 0 ≤ rank < world_size")
    return rank, world_size


def _pop_random(buffer: list[EncodedSample], rng: np.random.Generator) -> EncodedSample:
    position = int(rng.integers(len(buffer)))
    buffer[position], buffer[-1] = buffer[-1], buffer[position]
    return buffer.pop()
