"""Skip the profile and the texts of a PNG that are so large that Pillow refuses the file."""

from __future__ import annotations

import io
import os
import zlib
from typing import IO

MAX_CHUNK_BYTES = 2**20
"""Size above which a profile or a text is skipped, decompressed; Pillow has the same bound."""
MAX_TEXT_BYTES = 2**26
"""Size of all texts above which further ones are skipped; Pillow has the same bound."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COMPRESSED_START = {b"iCCP": 1, b"zTXt": 1, b"iTXt": 2}
"""Type of a chunk → the bytes after the first zero byte at which its data begins, or at which its header goes on."""
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


def without_large_chunks(file: IO[bytes]) -> IO[bytes] | None:
    """Return a copy of a PNG without the chunks whose profile or text is too large, or None if it has none.

    Args:
        file: A file of any format.

    Raises:
        EndlessFileError: The file has more chunks than any real image.
    """
    file.seek(0)
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        return None
    end = file.seek(0, os.SEEK_END)
    kept: list[tuple[int, int]] = []
    position, dropped, text_bytes = len(_SIGNATURE), False, 0
    while position + 8 <= end:
        file.seek(position)
        header = file.read(8)
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        after = min(position + 12 + length, end)
        size = _decompressed_size(kind, file.read(length)) if kind in (*_COMPRESSED_START, *_TEXTS) else 0
        is_large = size > MAX_CHUNK_BYTES or (kind in _TEXTS and text_bytes + size > MAX_TEXT_BYTES)
        if is_large:
            dropped = True
        else:
            kept.append((position, after))
            text_bytes += size if kind in _TEXTS else 0
        position = after
    if not dropped:
        return None
    copy = io.BytesIO()
    copy.write(_SIGNATURE)
    for start, after in kept:
        file.seek(start)
        copy.write(file.read(after - start))
    copy.seek(0)
    return copy


def _decompressed_size(kind: bytes, data: bytes) -> int:
    """Return the size of a profile or a text, but at most `MAX_CHUNK_BYTES` + 1 for a compressed one."""
    start = data.find(b"\0") + 1
    if kind == b"tEXt":
        return len(data)
    if kind == b"iTXt" and data[start : start + 1] != b"\1":  # not compressed
        return len(data)
    start += _COMPRESSED_START[kind]
    if kind == b"iTXt":  # a language and a translated keyword precede the text, each with a zero byte at its end
        for _ in range(2):
            start = data.find(b"\0", start) + 1
    try:
        return len(zlib.decompressobj().decompress(data[start:], MAX_CHUNK_BYTES + 1))
    except zlib.error:
        return 0  # Pillow says what is wrong
