"""The photographs that a run labelled, as far as they are still where they were."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np

from diffseg.images.decode import ImageError, decode_image
from pipeline.output.manifest import Manifest
from pipeline.readers.find import find_shards
from pipeline.readers.read import read_shard
from pipeline.readers.samples import Sample, Shard, ShardError
from pipeline.storage import Storage


def find_images(manifest: Manifest, store: Storage, source: str | None = None) -> dict[str, Shard]:
    """The shards of the run's SRC by name. source: where they lie now, if elsewhere. Raises SourceError."""
    shards = find_shards(
        source or manifest.source, store, samples_per_shard=int(manifest.settings["samples_per_shard"])
    )
    return {shard.name: shard for shard in shards}


def read_images(
    shard: Shard, keys: Mapping[int, str], store: Storage, image_field: str | None
) -> Iterator[tuple[int, np.ndarray | str]]:
    """uint8 [H, W, 3] of the samples at these places, with these keys, in order; a text says why there is none."""
    try:
        for place, sample in read_samples(shard, keys, store, image_field):
            if sample.key != keys[place]:
                yield place, f"{shard.name}: sample {place} is {sample.key!r} now, and was {keys[place]!r}"
            elif sample.image is None:
                yield place, f"{shard.name}: {sample.key}: {sample.error}"
            else:
                yield place, _decoded(shard, sample, sample.image)
    except (ShardError, FileNotFoundError, PermissionError) as error:
        yield from ((place, str(error)) for place in keys)


def read_samples(
    shard: Shard, places: Collection[int], store: Storage, image_field: str | None
) -> Iterator[tuple[int, Sample]]:
    """The samples at these places of a shard, in order; those beyond its end are not there."""
    if shard.kind == "images":
        kept = [place for place in sorted(places) if place < len(shard.files)]
        wanted = replace(shard, files=tuple(shard.files[place] for place in kept))
        yield from zip(kept, read_shard(wanted, store), strict=True)
        return
    last = max(places)
    for sample in read_shard(shard, store, image_field=image_field):
        if sample.index in places:
            yield sample.index, sample
        if sample.index >= last:
            return


def _decoded(shard: Shard, sample: Sample, data: bytes) -> np.ndarray | str:
    try:
        return decode_image(data)
    except ImageError as error:
        return f"{shard.name}: {sample.key}: {error}"


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
