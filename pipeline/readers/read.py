"""Read a shard of any kind as a stream of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pipeline.readers.image_files import read_images
from pipeline.readers.samples import DEFAULT_LIMITS, ReadLimits, Sample, Shard, ShardError
from pipeline.storage import Storage
from pipeline.storage.urls import split_url
from pipeline.timing import StepTimer

_KEY_BLOCK_BYTES = 2**18


def read_shard(
    shard: Shard,
    source: Storage | None = None,
    *,
    image_field: str | None = None,
    step: StepTimer | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
    on_note: Callable[[str], None] = lambda note: None,
) -> Iterator[Sample]:
    """Stream the samples of a shard in order, with only a few of them in memory at a time.

    Args:
        shard: A shard from `find_shards`.
        source: The storage options and retry timeout for the store of the shard. Its URL is not used. None stands for
            the defaults.
        image_field: The member extension (tar) or the column (Parquet) of the image, where there are several.
        step: Records the seconds of reading as `read`.
        limits: The size limits of a sample.
        on_note: Called with a sentence for the summary of a run, such as that another column holds the keys.

    Yields:
        A `Sample` for everything that the shard holds. Its `status` says what is wrong with it.

    Raises:
        ShardError: Nothing can be read, because the file is missing or of another kind.
        OSError: The store failed. Another attempt may succeed.
    """
    source, step = source or Storage(url="."), step or StepTimer()
    if shard.kind == "images":
        return read_images(source.at(shard.url), shard.files, step, limits)
    return step.iterate("read", _read_file(shard, source, image_field, limits, on_note))


def _read_file(
    shard: Shard, source: Storage, image_field: str | None, limits: ReadLimits, on_note: Callable[[str], None]
) -> Iterator[Sample]:
    folder, name = split_url(shard.url)
    try:
        file = source.at(folder).open(name)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ShardError(shard.url, "there is no such file, or it may not be read") from error
    with file:
        # Imported late: both readers load libraries that commands which only list shards do not need.
        if shard.kind == "parquet":
            from pipeline.readers.parquet import read_parquet

            # With small blocks, since the keys lie far apart in a large file.
            with source.at(folder).open(name, block_bytes=_KEY_BLOCK_BYTES) as key_file:
                yield from read_parquet(
                    file, shard.url, image_field, limits, key_field=shard.key_field, key_file=key_file, on_note=on_note
                )
        else:
            from pipeline.readers.tar import read_tar

            yield from read_tar(file, shard.url, image_field, limits)
