"""The shards of a source of image files: groups whose boundaries depend on the paths alone.

A group begins before each file whose path has a hash that is divisible by the wanted number of files. A file that is
added or removed therefore changes the group that it belongs to, and at most one more where it is itself the beginning
of a group; groups of a fixed number of files would all shift.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from pipeline.readers.kinds import without_query
from pipeline.readers.samples import Shard
from pipeline.readers.versions import group_version
from pipeline.storage import SourceError, redact
from pipeline.storage.backend import ListedFile

NAME_DIGITS = 12
"""Hexadecimal digits of the digest of a group's paths in the name of its shard."""


def group_images(url: str, files: Sequence[ListedFile], samples_per_shard: int, *, prefix: str = "") -> list[Shard]:
    """Return shards of about `samples_per_shard` image files each, in the order of the files.

    The name of a shard is a digest of its paths, so that groups of other files never have its name.

    Args:
        url: The root folder of the files.
        files: The files, sorted by path.
        samples_per_shard: The mean number of files in a shard.
        prefix: Precedes each path in the digest, where there are groups of several stores.

    Raises:
        SourceError: Two groups would have the same name, which is less likely than one in a million.
    """
    shards = [_shard(url, group, prefix) for group in _groups(files, samples_per_shard)]
    if len({shard.name for shard in shards}) < len(shards):
        raise SourceError(
            f"{redact(url)}: two groups of image files have the same digest; choose another --samples-per-shard"
        )
    return shards


def _groups(files: Sequence[ListedFile], samples_per_shard: int) -> Iterator[list[ListedFile]]:
    group: list[ListedFile] = []
    for file in files:
        if group and _hash(without_query(file.path)) % samples_per_shard == 0:
            yield group
            group = []
        group.append(file)
    if group:
        yield group


def _shard(url: str, group: list[ListedFile], prefix: str) -> Shard:
    paths = tuple(file.path for file in group)
    text = "\0".join(prefix + without_query(path) for path in paths)
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return Shard(
        name=f"images-{digest[:NAME_DIGITS]}", url=url, kind="images", files=paths, version=group_version(group)
    )


def _hash(path: str) -> int:
    """Return 64 bits that depend on the path alone, in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
