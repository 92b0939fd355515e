"""Reads the images that a run labelled again from its source, if they are still there and unchanged."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np

from diffseg.images.decode import ImageError, decode_image
from pipeline.output.commit import LabelShard
from pipeline.output.manifest import Manifest, is_generated
from pipeline.output.records import read_run_commits
from pipeline.output.writer import output_paths
from pipeline.readers.find import find_shards
from pipeline.readers.kinds import without_query
from pipeline.readers.read import read_shard
from pipeline.readers.samples import Sample, Shard, ShardError, utf8
from pipeline.storage import Storage
from pipeline.storage.urls import join_url


class SourceImageError(ValueError):
    """The source image of a row is missing, or is no longer the image that was labelled."""


def find_source_shards(
    manifest: Manifest, store: Storage, source: str | None = None, *, out: Storage
) -> dict[str, Shard]:
    """Return the shards of the run's SRC by name. A run that generated its images holds them in its own label shards.

    Args:
        manifest: Manifest of the run.
        store: Options for the store of SRC.
        source: Where SRC is now, if it has moved.
        out: OUT of the run.

    Raises:
        SourceError: SRC is missing or holds no shards.
    """
    if is_generated(manifest.settings) and source is None:
        done = sorted(read_run_commits(out, manifest).done)
        return {str(shard): label_shard_source(out, shard) for shard in done}
    shards = find_shards(
        source or manifest.source,
        store,
        samples_per_shard=int(manifest.settings["samples_per_shard"]),
        key_field=manifest.settings.get("key_field"),
    )
    return {shard.name: shard for shard in shards}


def label_shard_source(out: Storage, shard: LabelShard) -> Shard:
    """Return a label shard of a run as a shard to read; the tag of its record is its version."""
    url = join_url(out.url, output_paths(shard, ("parquet",))["parquet"])
    return Shard(name=str(shard), url=url, kind="parquet", version=shard.tag, key_field="key")


def read_source_images(
    shard: Shard,
    keys: Mapping[int, str],
    store: Storage,
    image_field: str | None,
    sizes: Mapping[int, tuple[int, int]] | None = None,
) -> Iterator[tuple[int, np.ndarray | str]]:
    """Read and decode some samples of a shard.

    Args:
        shard: A shard of the run's SRC.
        keys: Key that each sample had when it was labelled, by the sample's index in the shard.
        store: Options for the store of SRC.
        image_field: Member extension (tar) or column (Parquet) of the image, if a sample has several.
        sizes: Height and width of each image when it was labelled; None accepts images of any size.

    Yields:
        Index and pixels, uint8 [H, W, 3], in the order of the shard. A text in place of the pixels says why they
        cannot be read.
    """
    try:
        for index, sample in _read_by_key(shard, keys, store, image_field):
            if sample.key != keys[index]:
                yield index, f"{shard.name}: sample {index} was {keys[index]!r} in the run and is {sample.key!r} now"
            elif sample.image is None:
                yield index, f"{shard.name}: {sample.key}: {sample.error}"
            else:
                yield index, _decode(shard, sample, sample.image, sizes[index] if sizes else None)
    except (ShardError, FileNotFoundError, PermissionError) as error:
        yield from ((index, str(error)) for index in keys)


def read_samples(
    shard: Shard, indices: Collection[int], store: Storage, image_field: str | None
) -> Iterator[tuple[int, Sample]]:
    """Yield the samples with these indices in the order of the shard, skipping indices beyond its end."""
    if shard.kind == "images":
        present = [index for index in sorted(indices) if index < len(shard.files)]
        wanted = replace(shard, files=tuple(shard.files[index] for index in present))
        yield from zip(present, read_shard(wanted, store), strict=True)
        return
    last = max(indices, default=-1)
    if last < 0:
        return
    for sample in read_shard(shard, store, image_field=image_field):
        if sample.index in indices:
            yield sample.index, sample
        if sample.index >= last:
            return


def _read_by_key(
    shard: Shard, keys: Mapping[int, str], store: Storage, image_field: str | None
) -> Iterator[tuple[int, Sample]]:
    """Yield samples like `read_samples`; image files are found by their keys, wherever they are in the shard now."""
    if shard.kind != "images":
        yield from read_samples(shard, keys, store, image_field)
        return
    paths = {_key_of(path): path for path in shard.files}
    present = {index: paths[key] for index, key in sorted(keys.items()) if key in paths}
    wanted = replace(shard, files=tuple(present.values()))
    yield from zip(present, read_shard(wanted, store), strict=True)


def _key_of(path: str) -> str:
    """Return the key of an image file."""
    return utf8(without_query(path))


class MovedImages:
    """Finds image files by their keys after files were added to a folder or removed from it.

    Such a change alters the groups of files that shards are made of, and thereby the names of the shards.

    Args:
        sources: The shards of SRC by name, as they are now.
    """

    def __init__(self, sources: Mapping[str, Shard]) -> None:
        self._files = {
            _key_of(path): (shard, path) for shard in sources.values() if shard.kind == "images" for path in shard.files
        }

    def shard(self, name: str, keys: Collection[str]) -> Shard | None:
        """Return a shard of the files with these keys, as far as they are in one folder; None if there are none."""
        found = [self._files[key] for key in keys if key in self._files]
        if not found:
            return None
        folder = found[0][0]
        return replace(folder, name=name, files=tuple(path for shard, path in found if shard.url == folder.url))


def _decode(shard: Shard, sample: Sample, data: bytes, size: tuple[int, int] | None) -> np.ndarray | str:
    try:
        pixels = decode_image(data)
    except ImageError as error:
        return f"{shard.name}: {sample.key}: {error}"
    (height, width), before = pixels.shape[:2], size
    if before is None or (height, width) == before:
        return pixels
    had = f"had {before[1]} x {before[0]} in the run, so it is another image"
    return f"{shard.name}: {sample.key}: has {width} x {height} pixels now and {had}"


class SourceImages:
    """The source images of one shard, to be read in the order of the shard; one is in memory at a time.

    Args:
        shard: A shard of the run's SRC.
        keys: Key that each sample had when it was labelled, by the index of each sample that will be read.
        store: Options for the store of SRC.
        image_field: Member extension (tar) or column (Parquet) of the image, if a sample has several.
    """

    def __init__(self, shard: Shard, keys: Mapping[int, str], store: Storage, image_field: str | None) -> None:
        self._samples = _until_error(_read_by_key(shard, keys, store, image_field) if keys else iter(()))
        self._next: tuple[int, Sample] | str | None = next(self._samples, None)

    def read(self, row: int, key: str) -> bytes:
        """Return the stored bytes of the image of a row.

        Args:
            row: Index of the sample, larger than that of the previous call.
            key: Key that the sample had when it was labelled.

        Raises:
            SourceImageError: The image is missing, unreadable or another one.
        """
        while isinstance(self._next, tuple) and self._next[0] < row:
            self._next = next(self._samples, None)
        if isinstance(self._next, str):
            raise SourceImageError(self._next)
        if self._next is None or self._next[0] != row:
            raise SourceImageError(f"the source no longer has {key!r}, sample {row} of its shard")
        sample = self._next[1]
        if sample.key != key:
            raise SourceImageError(f"sample {row} is now {sample.key!r}")
        if sample.image is None:
            raise SourceImageError(sample.error)
        return sample.image


def _until_error(samples: Iterator[tuple[int, Sample]]) -> Iterator[tuple[int, Sample] | str]:
    """Yield the samples; an error that ends them is yielded as a text."""
    try:
        yield from samples
    except (ShardError, FileNotFoundError, PermissionError) as error:
        yield str(error)
