"""Run-length encodings of masks, as COCO, CVAT and Label Studio have them."""

from __future__ import annotations

import numpy as np

BRUSH_RUN_BYTES = 2**16
_CHANNELS = 4


def run_lengths(inside: np.ndarray) -> np.ndarray:
    """int64 lengths of the runs of a bool [N], in turns outside and inside; the first is of those outside, or 0."""
    changes = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [inside.size]]))
    return np.concatenate([[0], lengths]) if inside[0] else lengths


def coco_counts(mask: np.ndarray) -> str:
    """The compressed `counts` of COCO for a bool [H, W]: runs down the columns, five bits a character."""
    lengths = run_lengths(mask.ravel(order="F"))
    rest = lengths.copy()
    rest[3:] -= lengths[1:-2]  # all but the first three are differences from the run before the last
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
    """The `rle` of CVAT for a bool [H, W] that is cropped to its box: runs along the rows."""
    return ", ".join(map(str, run_lengths(mask.ravel()).tolist()))


def brush_bytes(mask: np.ndarray) -> list[int]:
    """The bytes of Label Studio's brush for a bool [H, W], which it takes for an RGBA image.

    A header of the number of bytes in it (32 bits), bits a value less one (5), and bits of four kinds of lengths less
    one (4 each). Then for each run, a bit that it is one, its kind of length (2), its length less one, and its value.
    """
    lengths = run_lengths(mask.ravel()) * _CHANNELS
    pieces = np.maximum(1, -(-lengths // BRUSH_RUN_BYTES))
    values = np.repeat(np.arange(lengths.size) % 2 * 255, pieces)
    split = np.full(values.size, BRUSH_RUN_BYTES)
    split[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * BRUSH_RUN_BYTES
    there = split > 0  # the first run may be empty
    runs = (0b111 << 24) | ((split[there] - 1) << 8) | values[there]  # the last of the four kinds alone, of 16 bits
    header = f"{mask.size * _CHANNELS:032b}{8 - 1:05b}{3 - 1:04b}{4 - 1:04b}{8 - 1:04b}{16 - 1:04b}"
    bits = np.unpackbits(runs.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)[:, 32 - 27 :]
    return np.packbits(np.concatenate([np.array(list(header), np.uint8), bits.ravel()])).tolist()
