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
