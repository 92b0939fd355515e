"""Pack image files into WebDataset tars. The same files always give the same bytes."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.readers.find import find_files
from pipeline.readers.read import read_shard
from pipeline.readers.samples import Sample, Shard
from pipeline.storage import SourceError, Storage, redact

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """The totals of a run.

    Attributes:
        images: The number of images.
        shards: The number of tars.
        bytes: The size of all tars together.
        left_out: What was not packed, by kind.
    """

    images: int
    shards: int
    bytes: int
    left_out: Mapping[str, Any]


def pack_images(
    images: str, shards: str, *, samples_per_shard: int = 256, options: Mapping[str, Any] | None = None
) -> Packed:
    """Pack image files, with their bytes unchanged, into `000000.tar`, `000001.tar` and so on.

    The key of a sample is the relative path without its extension. Dots in the last part of the path are replaced by
    `_`, because WebDataset ends a key at the first of them. The `json` of the sample holds the original path.

    Args:
        images: A folder or URL of image files, or a glob or brace range of them.
        shards: An empty folder or URL for the result. It may lie in `images`, but not the other way round.
        samples_per_shard: The number of images in a tar. The last tar may have fewer.
        options: The storage options for both places.

    Raises:
        SourceError: No images were found, an image cannot be read, or `shards` already holds tars.
    """
    source = Storage(url=images, options=options)
    out = Storage(url=shards, options=options)
    found = find_files(images, source, out=(out,))
    if found.kind != "images":
        raise SourceError(f"{redact(images)}: holds {found.kind} shards, which need no packing; name image files")
    if samples_per_shard < 1:
        raise SourceError(f"samples per shard must be at least 1, not {samples_per_shard}")
    groups = [
        (source.at(root).url, tuple(file.path for file in files[start : start + samples_per_shard]))
        for root, files in found.by_root.items()
        for start in range(0, len(files), samples_per_shard)
    ]
    if present := [name for name in out.names() if not name.startswith(".")]:
        raise SourceError(f"{out.redacted}: holds files already ({present[0]} …); name an empty folder")
    keys: set[str] = set()
    count = size = 0
    for number, (url, group) in enumerate(groups):
        shard = Shard(name=f"{number:06d}", url=url, kind="images", files=group)
        samples = _complete(read_shard(shard, out), images)
        with tempfile.TemporaryDirectory(prefix="diffseg-shard-") as folder:
            local = os.path.join(folder, "shard.tar")
            count += _write_tar(local, samples, keys)
            size += os.path.getsize(local)
            out.write_file(f"{number:06d}.tar", local)
        logger.info("%s: written", out.joined(f"{number:06d}.tar"))
    return Packed(images=count, shards=len(groups), bytes=size, left_out=found.left_out.plain())


def _complete(samples: Iterator[Sample], source: str) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the image of each sample. Raises SourceError for a sample without an image."""
    for sample in samples:
        if sample.image is None:
            raise SourceError(f"{redact(source)}: {sample.key} cannot be packed: {sample.error}")
        yield sample.key, sample.image


def _write_tar(local: str, files: Iterator[tuple[str, bytes]], keys: set[str]) -> int:
    """Write images to a local tar and return their number. Adds their keys to `keys`."""
    import webdataset  # imported late, because it loads torch

    count = 0
    with (
        open(local, "wb") as file,
        webdataset.TarWriter(file, encoder=False, mtime=0, user="root", group="root") as writer,
    ):
        for path, data in files:
            stem, _, extension = path.rpartition(".")
            # The escapes of JSON keep these bytes ASCII, whatever the path contains.
            meta = json.dumps({"path": path}).encode()
            writer.write({"__key__": _key(stem, keys), extension.lower(): data, "json": meta})
            count += 1
    return count


def _key(stem: str, taken: set[str]) -> str:
    """Return a key that WebDataset reads back unchanged and that no other image has, and add it to `taken`."""
    folder, slash, name = stem.rpartition("/")
    key = folder + slash + name.replace(".", "_")
    # WebDataset takes members in __folders__ at the root for metadata and skips them.
    key = re.sub(r"^__([^/]*__($|/))", r"_\1", key)
    unique, number = key, 2
    while unique in taken:
        unique, number = f"{key}-{number}", number + 1
    taken.add(unique)
    return unique
