"""Digests of text and files, as they appear in fingerprints, file names and records."""

from __future__ import annotations

import hashlib
from pathlib import Path

BLOCK_BYTES = 2**20


def short_digest(content: str | bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a text (as UTF-8) or of bytes."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a local file as hexadecimal digits, reading it in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
