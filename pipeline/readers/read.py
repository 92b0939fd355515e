"""Read a shard of any kind as a stream of samples."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.readers.image_files import read_images
from pipeline.readers.samples import Sample, Shard, ShardError
from pipeline.storage import Storage
from pipeline.storage.urls import split_url
from pipeline.timing import StepTimer


def read_shard(
    shard: Shard, source: Storage | None = None, *, image_field: str | None = None, step: StepTimer | None = None
) -> Iterator[Sample]:
    """Stream the samples of a shard in order: one in memory at a time, or a few where each is a file.

    Args:
        shard: from ``find_shards``.
        source: how its store is reached (options, retry timeout); its URL does not matter. None for the defaults.
        image_field: the member extension (tar) or the column (Parquet) that holds the image, where several could.
        step: is given the seconds of reading, as ``read``.

    Yields:
        One ``Sample`` for everything the shard holds; what is wrong with a sample is its ``status``.

    Raises:
        ShardError: when nothing can be read: the file is missing, or of another kind.
        OSError: when the store fails; another attempt may help.
    """
    source, step = source or Storage(url="."), step or StepTimer()
    if shard.kind == "images":
        return read_images(source.at(shard.url), shard.files, step)
    return step.iterate("read", _read_file(shard, source, image_field))


def _read_file(shard: Shard, source: Storage, image_field: str | None) -> Iterator[Sample]:
    folder, name = split_url(shard.url)
    try:
        file = source.at(folder).open(name)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ShardError(shard.url, "there is no such file, or it may not be read") from error
    with file:
        # Imported here: both readers load libraries that commands which only list shards do without.
        if shard.kind == "parquet":
            from pipeline.readers.parquet import read_parquet

            yield from read_parquet(file, shard.url, image_field)
        else:
            from pipeline.readers.tar import read_tar

            yield from read_tar(file, shard.url, image_field)
