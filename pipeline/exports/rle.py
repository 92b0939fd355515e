"""Run-length encodings of masks in the formats of COCO, CVAT and Label Studio."""

from __future__ import annotations

import numpy as np

BRUSH_RUN_BYTES = 2**16
"""Longest run of Label Studio's brush format, in bytes."""

_CHANNELS = 4


def run_lengths(inside: np.ndarray) -> np.ndarray:
    """Return the lengths of the runs of a bool [N], int64.

    Runs alternate between False and True. The first counts False values and may be 0.
    """
    changes = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [inside.size]]))
    return np.concatenate([[0], lengths]) if inside[0] else lengths


def coco_counts(mask: np.ndarray) -> str:
    """Return COCO's compressed `counts` of a bool [H, W]: runs along the columns, five bits per character."""
    lengths = run_lengths(mask.ravel(order="F"))
    rest = lengths.copy()
    rest[3:] -= lengths[1:-2]  # from the fourth on, runs are stored as the difference from the run two before
    characters = []
    pending = np.ones(rest.size, bool)
    while pending.any():
        digit = rest & 31
        rest >>= 5
        more = pending & (rest != np.where(digit & 16, -1, 0))
        characters.append(np.where(pending, digit + 32 * more + 48, 0))
        pending = more
    table = np.stack(characters, axis=1).astype(np.uint8)
    return table[table > 0].tobytes().decode("ascii")


def cvat_counts(mask: np.ndarray) -> str:
    """Return CVAT's `rle` of a bool [H, W] that is cropped to its bounding box: runs along the rows."""
    return ", ".join(map(str, run_lengths(mask.ravel()).tolist()))


def brush_bytes(mask: np.ndarray) -> list[int]:
    """Return the bytes of Label Studio's brush format for a bool [H, W], which it reads as an RGBA image.

    The header holds the number of bytes of the image (32 bits), the bits per value minus one (5), and the bits of four
    length formats minus one (4 each). Each run holds a 1 bit, which marks it as a run, its length format (2 bits), its
    length minus one, and its value.
    """
    lengths = run_lengths(mask.ravel()) * _CHANNELS
    pieces = np.maximum(1, -(-lengths // BRUSH_RUN_BYTES))
    values = np.repeat(np.arange(lengths.size) % 2 * 255, pieces)
    split = np.full(values.size, BRUSH_RUN_BYTES)
    split[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * BRUSH_RUN_BYTES
    used = split > 0  # the first run may be empty
    runs = (0b111 << 24) | ((split[used] - 1) << 8) | values[used]  # only the fourth length format is used, of 16 bits
    header = f"{mask.size * _CHANNELS:032b}{8 - 1:05b}{3 - 1:04b}{4 - 1:04b}{8 - 1:04b}{16 - 1:04b}"
    bits = np.unpackbits(runs.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)[:, 32 - 27 :]
    return np.packbits(np.concatenate([np.array(list(header), np.uint8), bits.ravel()])).tolist()
