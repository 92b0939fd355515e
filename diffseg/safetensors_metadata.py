"""Metadata of safetensors files that are held in memory; the library itself reads it from files only."""

from __future__ import annotations

import json


def read_metadata(data: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Args:
        data: The file: the length of its header (8 bytes, little-endian), the header as JSON, then the tensors.

    Returns:
        The texts under `__metadata__` in the header; empty if there are none.

    Raises:
        ValueError: The header is not JSON.
    """
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]).get("__metadata__", {})
