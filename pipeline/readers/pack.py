"""Pack image files into WebDataset tars: the same files give the same bytes."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.readers.find import find_shards
from pipeline.readers.read import read_shard
from pipeline.readers.samples import Sample
from pipeline.storage import SourceError, Storage, redact

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """What was written: how many images, in how many shards, of how many bytes together."""

    images: int
    shards: int
    bytes: int


def pack_images(
    images: str, shards: str, *, samples_per_shard: int = 256, options: Mapping[str, Any] | None = None
) -> Packed:
    """Pack the image files at ``images`` into ``000000.tar``, ``000001.tar`` … at ``shards``, bytes unchanged.

    A sample's key is the relative path without its extension, with dots in the last part replaced by ``_``, since
    WebDataset ends a key at the first dot there; its ``json`` holds the path as it was.

    Args:
        images: a folder or URL of image files, or a glob or brace range of them.
        shards: a folder or URL without tars.
        samples_per_shard: the last shard may have fewer.
        options: storage options for both.

    Raises:
        SourceError: no images were found, an image could not be read, or ``shards`` holds tars already.
    """
    found = find_shards(images, Storage(url=images, options=options), samples_per_shard=samples_per_shard)
    if found[0].kind != "images":
        raise SourceError(f"{redact(images)}: holds {found[0].kind} shards, which need no packing; name image files")
    out = Storage(url=shards, options=options)
    present = [path for path, _ in out.files() if path.endswith((".tar", ".tar.gz", ".tgz"))]
    if present:
        raise SourceError(f"{out.redacted}: holds {len(present)} tars already ({present[0]} …); name an empty folder")
    keys: set[str] = set()
    count = size = 0
    for number, shard in enumerate(found):
        samples = _whole(read_shard(shard, out), images)
        with tempfile.TemporaryDirectory(prefix="diffseg-shard-") as folder:
            local = os.path.join(folder, "shard.tar")
            count += _write_tar(local, samples, keys)
            size += os.path.getsize(local)
            out.write_file(f"{number:06d}.tar", local)
        logger.info("%s: written", out.joined(f"{number:06d}.tar"))
    return Packed(images=count, shards=len(found), bytes=size)


def _whole(samples: Iterator[Sample], source: str) -> Iterator[tuple[str, bytes]]:
    for sample in samples:
        if sample.image is None:
            raise SourceError(f"{redact(source)}: {sample.key} cannot be packed: {sample.error}")
        yield sample.key, sample.image


def _write_tar(local: str, files: Iterator[tuple[str, bytes]], keys: set[str]) -> int:
    import webdataset  # loads torch, which whoever only lists shards does without

    count = 0
    with (
        open(local, "wb") as file,
        webdataset.TarWriter(file, encoder=False, mtime=0, user="root", group="root") as writer,
    ):
        for path, data in files:
            stem, _, extension = path.rpartition(".")
            # JSON's escapes keep the bytes ASCII whatever the path holds.
            meta = json.dumps({"path": path}).encode()
            writer.write({"__key__": _key(stem, keys), extension.lower(): data, "json": meta})
            count += 1
    return count


def _key(stem: str, taken: set[str]) -> str:
    """A key that WebDataset reads back as it is, and that no other image has."""
    folder, slash, name = stem.rpartition("/")
    key = folder + slash + name.replace(".", "_")
    # Readers skip members in __folders__ at the root as metadata.
    key = re.sub(r"^__([^/]*__($|/))", r"_\1", key)
    free, number = key, 2
    while free in taken:
        free, number = f"{key}-{number}", number + 1
    taken.add(free)
    return free
