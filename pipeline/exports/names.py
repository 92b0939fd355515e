"""File names of exported images: safe on every file system, unique, and parsed the same way by every reader."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import numpy as np

from pipeline.digest import short_digest
from pipeline.readers.file_names import MAX_NAME_LENGTH, safe_file_name, without_image_extension

_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")


def flat_name(key: str) -> str:
    """Return the key without its extension as a single file name; a digest marks keys that had to be changed."""
    return safe_file_name(without_image_extension(key), fallback="image", digest_digits=16)


def unique_name(key: str, shard: str, row: int) -> str:
    """Return the `flat_name` of a key followed by a digest of its row, for keys whose flat names collide."""
    return f"{flat_name(key)[: MAX_NAME_LENGTH - 17]}-{short_digest(f'{shard}/{row}')}"


def is_plain_path(key: str) -> bool:
    """Return whether the key can be used as a relative path as it is."""
    return not _CONTROL.search(key) and all(part not in ("", ".", "..") for part in key.split("/"))


def name_hash(key: str) -> int:
    """Return a 64-bit hash that is equal for keys whose file names collide on a case-insensitive file system."""
    return int.from_bytes(hashlib.blake2b(flat_name(key).lower().encode(), digest_size=8).digest(), "little")


def repeated(hashes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the uint64 hashes that occur more than once in all label shards together."""
    values, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes.values()]), return_counts=True)
    return values[counts > 1]
