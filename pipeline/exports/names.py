"""File names of exported images: safe everywhere, unique, and whole under the rules of every reader."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import numpy as np

from pipeline.digest import short_digest
from pipeline.readers.file_names import MAX_NAME_LENGTH, safe_file_name
from pipeline.readers.samples import IMAGE_EXTENSIONS

_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


def flat_name(key: str) -> str:
    """The key without its extension as one file name; what had to be changed is told apart by a digest."""
    stem, _, extension = key.rpartition(".")
    if not (stem and extension.lower() in IMAGE_EXTENSIONS):
        stem = key
    return safe_file_name(stem, fallback="image", digest_digits=16)


def place_name(key: str, shard: str, row: int) -> str:
    """As `flat_name`, for a key whose name another image has as well."""
    return f"{flat_name(key)[: MAX_NAME_LENGTH - 17]}-{_digest(f'{shard}/{row}')}"


def is_plain_path(key: str) -> bool:
    """Whether the key can stand for a file below some folder as it is."""
    return not _CONTROL.search(key) and all(part not in ("", ".", "..") for part in key.split("/"))


def name_hash(key: str) -> int:
    """64 bits; keys whose file names would be the same on some file system have the same."""
    return int.from_bytes(hashlib.blake2b(flat_name(key).lower().encode(), digest_size=8).digest(), "little")


def repeated(hashes: Mapping[str, np.ndarray]) -> np.ndarray:
    """uint64 hashes that there are several of, among those of all label shards."""
    everything = np.concatenate([np.empty(0, np.uint64), *hashes.values()])
    found, counts = np.unique(everything, return_counts=True)
    return found[counts > 1]


def _digest(text: str) -> str:
    return short_digest(text)
