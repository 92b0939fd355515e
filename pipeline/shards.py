"""Shards: find them at a URL, and read one as a stream of samples.

The readers of the three kinds live in ``tarshard``, ``parquetshard`` and ``imageshard``.
"""

from __future__ import annotations

from pipeline.samples import (
    IMAGE_EXTENSIONS,
    MAX_META_BYTES,
    MAX_SAMPLE_BYTES,
    STATUSES,
    Sample,
    Shard,
    ShardError,
)

__all__ = [
    "IMAGE_EXTENSIONS",
    "MAX_META_BYTES",
    "MAX_SAMPLE_BYTES",
    "STATUSES",
    "Sample",
    "Shard",
    "ShardError",
]
