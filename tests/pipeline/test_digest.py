"""Digests are written into files of OUT, so their values must never change."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.digest import BLOCK_BYTES, file_sha256, short_digest


def test_a_short_digest_is_the_beginning_of_the_sha256() -> None:
    assert short_digest("abc") == short_digest(b"abc") == "ba7816bf8f01cfea"
    assert short_digest("ü") == hashlib.sha256("ü".encode()).hexdigest()[:16]


def test_a_file_of_several_blocks_is_digested_as_a_whole(tmp_path: Path) -> None:
    data = bytes(range(256)) * (BLOCK_BYTES // 128)
    (tmp_path / "data").write_bytes(data)
    assert file_sha256(tmp_path / "data") == hashlib.sha256(data).hexdigest()
