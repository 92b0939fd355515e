"""Photographs and their label maps as samples to train on: each once an epoch, over any number of ranks and workers.

An epoch is a list of rows: the label shards in an order of its own, and their rows in order. Ranks, and the loader's
workers within a rank, take equal stretches of that list, so that none is read twice, and each mixes its stretch in a
buffer. All of it follows from (seed, epoch), which is why a reader can begin anywhere in the middle.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from diffseg.images.decode import decode_image
from pipeline.output.commit import read_run_commits
from pipeline.output.manifest import Manifest, require_manifest
from pipeline.output.reader import label_rows
from pipeline.output.rows import decode_mask
from pipeline.output.source_images import find_source_shards, read_samples
from pipeline.storage import SourceError, Storage

__all__ = ["LabelDataset", "RowFilter", "TrainingSample"]

IGNORE_INDEX = -100
"""What PyTorch's losses leave out unless they are told otherwise."""


class TrainingSample(TypedDict):
    """image: uint8 [3, size, size]. mask: int64 [size, size], ids of segments or classes, and the ignore index.

    key: of the sample.
    """

    key: str
    image: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class RowFilter:
    """Which rows are worth training on, besides those without a mask, which never are.

    confidence: least confidence of the image, 0 to 1. segments: least and most segments; None is no bound.
    segment_confidence: pixels of less confident segments are ignored.
    """

    confidence: float = 0.0
    segments: tuple[int, int | None] = (1, None)
    segment_confidence: float = 0.0

    def accepts(self, row: Mapping[str, Any]) -> bool:
        least, most = self.segments
        return (
            row["status"] == "ok"
            and row["confidence"] >= self.confidence
            and least <= row["n_segments"]
            and (most is None or row["n_segments"] <= most)
        )


class _Stretch(NamedTuple):
    """Rows `start` to `stop` of those that are accepted in a label shard."""

    shard: str
    start: int
    stop: int


class _Encoded(NamedTuple):
    key: str
    shard: str
    place: int
    image: bytes
    mask: bytes
    targets: dict[int, int]
    """By segment id; the others are ignored."""


class LabelDataset(IterableDataset):
    """The rows of a label run with their photographs, for a `torch.utils.data.DataLoader` with any number of workers.

    Args:
        out: OUT of a label run, a folder or any fsspec URL.
        images: where SRC lies now, if elsewhere than the run says.
        size: side of the samples in pixels.
        crop: least share of the image's shorter side that a random square crop has; 1 and no flip: the centre.
        flip: mirror every second sample at random.
        target: what masks hold: ids of segments, each with a meaning within its image alone, or of classes, which a
            run with names has: 0 background, 1 … the names of run.json in their order; what lies between is ignored.
        rows: which rows, and which segments, are used.
        buffer: encoded samples that are held to be mixed; 1 keeps the order of the shards.
        ignore_index: of pixels in no segment, or in an unsure one.
        seed: of orders, crops and flips.
        rank, world_size: of this process; by default torch.distributed's, where it is initialised.
        options: storage options for both URLs.

    Every rank has as many samples as any other, so that none waits for another: up to world_size − 1 rows, others in
    every epoch, are left out. Raises SourceError where the run, its rows or its photographs are not there, or a
    photograph is not the one that was labelled.
    """

    def __init__(
        self,
        out: str,
        *,
        images: str | None = None,
        size: int = 256,
        crop: float = 0.5,
        flip: bool = True,
        target: Literal["segments", "classes"] = "segments",
        rows: RowFilter = RowFilter(),
        buffer: int = 1000,
        ignore_index: int = IGNORE_INDEX,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if size < 1 or buffer < 1 or not 0 < crop <= 1:
            raise ValueError(f"size={size}, buffer={buffer}, crop={crop}: expected size, buffer ≥ 1 and crop in (0, 1]")
        self._size, self._crop, self._flip, self._rows = size, crop, flip, rows
        self._target, self._buffer, self._ignore_index, self._seed = target, buffer, ignore_index, seed
        self.rank, self.world_size = _place(rank, world_size)
        self._epoch, self._skipped_batches, self._batch_size = 0, 0, 1
        self._out = Storage(url=out, options=options)
        manifest = require_manifest(self._out)
        self.fingerprint, self._names = manifest.fingerprint, manifest.settings.get("naming", {}).get("names", ())
        if target == "classes" and not self._names:
            raise SourceError(f"{self._out.redacted}: its segments have no names, so there are no classes to train on")
        self._image_field = manifest.settings["image_field"]
        self._sources = find_source_shards(manifest, self._out, images)
        self._index = self._read_index(manifest)
        if len(self) == 0:
            raise SourceError(f"{self._out.redacted}: no row is left for {self.world_size} ranks, by {rows}")

    def _read_index(self, manifest: Manifest) -> dict[str, np.ndarray]:
        """The accepted rows' numbers, int32, by label shard."""
        columns = ("index", "status", "confidence", "n_segments")
        index = {
            shard: np.array(
                [row["index"] for row in label_rows(self._out, shard, columns) if self._rows.accepts(row)], np.int32
            )
            for shard in sorted(read_run_commits(self._out, manifest).done)
        }
        missing = [shard for shard, rows in index.items() if len(rows) and shard not in self._sources]
        if missing:
            raise SourceError(
                f"{missing[0]}: its photographs are not at the run's source any more; say with images= where they are"
            )
        return index

    @property
    def classes(self) -> int:
        """How many there are, the background included; 0 in a run without names."""
        return len(self._names) + 1 if self._names else 0

    def __len__(self) -> int:
        """Samples of an epoch on this rank, over all its workers."""
        return sum(map(len, self._index.values())) // self.world_size

    def start_at(self, epoch: int, *, batches: int = 0, batch_size: int = 1) -> None:
        """Begin the next iteration in this epoch, after so many batches of a loader with this batch size.

        A loader takes its workers in turn, a batch from each; nothing is decoded for what is skipped.
        """
        if min(epoch, batches) < 0 or batch_size < 1:
            raise ValueError(f"epoch={epoch}, batches={batches}, batch_size={batch_size}: expected 0, 0, 1 or more")
        self._epoch, self._skipped_batches, self._batch_size = epoch, batches, batch_size

    def __iter__(self) -> Iterator[TrainingSample]:
        info = get_worker_info()
        number, workers = (0, 1) if info is None else (info.id, info.num_workers)
        # A loader begins with its first worker, which takes the part of the one whose turn it was.
        worker = (number + self._skipped_batches) % workers
        batches = self._skipped_batches // workers + (worker < self._skipped_batches % workers)
        stretches = self._stretches(worker, workers)
        mixed = self._mixed(
            self._encoded(stretches), np.random.default_rng([self._seed, self._epoch, self.rank, worker])
        )
        for encoded in islice(mixed, batches * self._batch_size, None):
            yield self._decoded(encoded)

    def _stretches(self, worker: int, workers: int) -> list[_Stretch]:
        """This worker's part of the epoch."""
        shards = sorted(self._index)
        order = np.random.default_rng([self._seed, self._epoch]).permutation(len(shards))
        first = self.rank * len(self)
        start, stop = (first + len(self) * part // workers for part in (worker, worker + 1))
        found, place = [], 0
        for shard in (shards[i] for i in order):
            count = len(self._index[shard])
            if start < place + count and place < stop:
                found.append(_Stretch(shard, max(0, start - place), min(count, stop - place)))
            place += count
        return found

    def _encoded(self, stretches: Sequence[_Stretch]) -> Iterator[_Encoded]:
        columns = ("key", "index", "mask", "segments")
        for stretch in stretches:
            wanted = set(self._index[stretch.shard][stretch.start : stretch.stop].tolist())
            rows = (row for row in label_rows(self._out, stretch.shard, columns) if row["index"] in wanted)
            samples = read_samples(self._sources[stretch.shard], wanted, self._out, self._image_field)
            for row, (place, sample) in zip(rows, samples, strict=True):
                if (place, sample.key) != (row["index"], row["key"]) or sample.image is None:
                    raise SourceError(
                        f"{stretch.shard}: sample {row['index']} was {row['key']!r} when it was labelled, and is "
                        f"{sample.key!r} now ({sample.error or 'an image'}); name the run's images with images="
                    )
                yield _Encoded(
                    row["key"], stretch.shard, place, sample.image, row["mask"], self._targets(row["segments"])
                )

    def _targets(self, segments: Sequence[Mapping[str, Any]]) -> dict[int, int]:
        sure = [s for s in segments if s["confidence"] >= self._rows.segment_confidence]
        if self._target == "segments":
            return {s["id"]: s["id"] for s in sure}
        return {s["id"]: s["class_id"] for s in sure if s["class_id"] is not None and s["class_id"] >= 0}

    def _mixed(self, samples: Iterator[_Encoded], rng: np.random.Generator) -> Iterator[_Encoded]:
        held: list[_Encoded] = []
        for sample in samples:
            held.append(sample)
            if len(held) >= self._buffer:
                yield _taken(held, rng)
        while held:
            yield _taken(held, rng)

    def _decoded(self, encoded: _Encoded) -> TrainingSample:
        # The sample's own numbers: the same crop whichever worker has it.
        name = zlib.crc32(encoded.shard.encode())
        rng = np.random.default_rng([self._seed, self._epoch, name, encoded.place])
        image, mask = decode_image(encoded.image), decode_mask(encoded.mask)
        if image.shape[:2] != mask.shape:
            raise SourceError(
                f"{encoded.shard}: {encoded.key!r} has {image.shape[1]} x {image.shape[0]} pixels now, its label map "
                f"{mask.shape[1]} x {mask.shape[0]}; name the run's images with images="
            )
        table = np.full(np.iinfo(mask.dtype).max + 1, self._ignore_index, np.int32)
        table[list(encoded.targets)] = list(encoded.targets.values())
        labels = table[mask]
        box = _random_square(rng, image.shape[0], image.shape[1], self._crop)
        size = (self._size, self._size)
        pixels = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
        target = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST, box=box)
        photograph, truth = np.asarray(pixels), np.asarray(target)
        if self._flip and rng.random() < 0.5:
            photograph, truth = photograph[:, ::-1], truth[:, ::-1]
        return TrainingSample(
            key=encoded.key,
            image=torch.from_numpy(np.ascontiguousarray(photograph.transpose(2, 0, 1))),
            mask=torch.from_numpy(truth.astype(np.int64)),
        )


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if rank is None:
        rank = torch.distributed.get_rank() if distributed else 0
    if world_size is None:
        world_size = torch.distributed.get_world_size() if distributed else 1
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank}, world_size={world_size}: expected 0 ≤ rank < world_size")
    return rank, world_size


def _taken(held: list[_Encoded], rng: np.random.Generator) -> _Encoded:
    place = int(rng.integers(len(held)))
    held[place], held[-1] = held[-1], held[place]
    return held.pop()


def _random_square(
    rng: np.random.Generator, height: int, width: int, least: float
) -> tuple[float, float, float, float]:
    """(left, upper, right, lower) of a square of `least` to all of the shorter side; the centre one where that is 1."""
    side = min(height, width) * (rng.uniform(least, 1.0) if least < 1 else 1.0)
    y, x = rng.random(2) if least < 1 else (0.5, 0.5)
    top, left = y * (height - side), x * (width - side)
    return left, top, left + side, top + side
