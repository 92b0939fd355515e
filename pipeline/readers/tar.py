"""Read the samples of a WebDataset tar."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from typing import IO

from pipeline.readers.samples import (
    DEFAULT_LIMITS,
    FirstSeen,
    ReadLimits,
    Sample,
    ShardError,
    bounded_key,
    meta_text,
    shorten,
)
from pipeline.readers.tar_groups import TarGroup, TarGrouper
from pipeline.readers.tar_stream import NotTar, TarStream
from pipeline.storage import redact

logger = logging.getLogger(__name__)


def read_tar(
    file: IO[bytes], url: str, image_field: str | None = None, limits: ReadLimits = DEFAULT_LIMITS
) -> Iterator[Sample]:
    """Stream the samples of a tar, which may be compressed with gzip, bzip2 or zstd. One sample at a time is in memory.

    Args:
        file: Opened for binary reading, at its start.
        url: The URL of the file, for messages.
        image_field: The extension that holds the image, for samples with several images.
        limits: The size limits of a sample.

    Yields:
        The samples in order. A damaged tar yields its complete samples and then one with the status `truncated`.

    Raises:
        ShardError: The file is not a tar.
    """
    image_field = image_field.lower() if image_field is not None else None
    first_seen = FirstSeen()
    try:
        stream = TarStream(file)
    except NotTar as error:
        raise ShardError(url, str(error)) from error
    with closing(stream):
        for index, group in enumerate(TarGrouper(stream, image_field, limits).groups()):
            first = first_seen(group.key, index)
            # The group that reports damage between two samples has no key, so it cannot repeat one.
            duplicate_of = first if group.members and first != index else None
            yield _sample(index, group, duplicate_of, image_field, limits)
    if not first_seen:
        logger.warning("%s: the tar holds no samples; members must be named <key>.<extension>", redact(url))


def _sample(
    index: int, group: TarGroup, duplicate_of: int | None, image_field: str | None, limits: ReadLimits
) -> Sample:
    key, key_error = bounded_key(group.key, limits)
    image: bytes | None = None
    if group.damage:
        status, error = "truncated", f"the tar cannot be read beyond this place: {group.damage}"
    elif duplicate_of is not None:
        status, error = "duplicate_key", f"sample {duplicate_of} of this shard has the key {group.key!r} already"
    elif key_error:
        status, error = "too_large", key_error
    else:
        image, status, error = _image(group, image_field, limits)
    return Sample(
        index=index,
        key=key,
        image=image,
        meta=meta_text(group.fields, group.fields_bytes, limits),
        status=status,
        error=shorten(error),
    )


def _image(group: TarGroup, image_field: str | None, limits: ReadLimits) -> tuple[bytes | None, str, str]:
    """Return the encoded image, the status and the message of a complete group; the image is None if not `ok`."""
    candidates = group.candidates
    if len(candidates) > 1:
        listing = ", ".join(candidates)
        return None, "several_images", f"{listing}: which of them is the image must be said (--image-field)"
    if not candidates:
        wanted = f"a member {image_field!r}" if image_field is not None else "an image"
        listing = ", ".join(ext if kind == "file" else f"{ext} ({kind})" for ext, kind in sorted(group.members.items()))
        return None, "no_image", f"{wanted} is missing; the sample has {listing}"
    image = group.images[candidates[0]]
    if isinstance(image, int):
        return None, "too_large", f"{candidates[0]} has {image} bytes; at most {limits.max_sample_bytes} are read"
    return image, "ok", ""
