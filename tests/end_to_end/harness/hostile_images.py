"""Broken images, bombs, and files that are not images, each with the statuses that its row may have."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

MAX_PIXELS = 2**20
"""The limit of the fuzzed runs, in pixels: a bomb just below it is cheap."""

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm"}
BROKEN = frozenset({"undecodable"})
TOO_LARGE = frozenset({"too_large"})
ANY = frozenset({"ok", "undecodable", "too_large", "too_small"})
"""Statuses after a bit flip anywhere, after which the image may even be intact."""


@dataclass(frozen=True)
class Bad:
    """A bad sample.

    Attributes:
        kind: Its line in the table of outcomes.
        data: Content of the image file.
        statuses: The statuses that its row may have.
    """

    kind: str
    data: bytes
    statuses: frozenset[str]


def photograph(rng: random.Random, form: str = "PNG", size: tuple[int, int] = (40, 32)) -> bytes:
    """Return a good image of noise. Noise does not compress, so half of the file is half of the pixels."""
    pixels = np.frombuffer(rng.randbytes(size[0] * size[1] * 3), np.uint8).reshape(size[1], size[0], 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **({"lossless": True} if form == "WEBP" else {}))
    return buffer.getvalue()


def chunk(name: bytes, data: bytes, length: int | None = None) -> bytes:
    """Return a PNG chunk. `length` is declared instead of the true length."""
    declared = len(data) if length is None else length
    return struct.pack(">I", declared) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, pixels: bytes, *extra: bytes, colour: int = 2) -> bytes:
    """Return a PNG with a given header. `pixels` are the bytes before compression."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body


def _bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def _tiff(width: int, height: int, *extra: tuple[int, int, int, int]) -> bytes:
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags = sorted([*tags, (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, width * height % 2**32), *extra])
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def declared_huge(rng: random.Random) -> Iterator[Bad]:
    """Yield small files that declare 2^31 pixels and more."""
    for width, height in ((2**16, 2**15), (2**31 - 1, 2**31 - 1), (2**31 - 1, 16), (MAX_PIXELS // 16 + 1, 16)):
        yield Bad("declares 2^31 pixels", png(width, height, b"x"), TOO_LARGE)
        yield Bad("declares 2^31 pixels", _bmp(width, height), TOO_LARGE)
        yield Bad("declares 2^31 pixels", _tiff(width, height), TOO_LARGE)
        yield Bad("declares 2^31 pixels", b"P6 %d %d 255\n123" % (width, height), TOO_LARGE | BROKEN)
    yield Bad("declares 2^31 pixels", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";", ANY - {"ok"})
    webp = bytearray(photograph(rng, "WEBP"))
    webp[21:25] = b"\xff\xff\xff\x0f"  # 16384 x 16384 in the header of the lossless stream
    yield Bad("declares 2^31 pixels", bytes(webp), TOO_LARGE | BROKEN)
    for colour in (0, 2, 6):
        yield Bad("negative sizes", png(2**32 - 1, 40, b"x", colour=colour), TOO_LARGE | BROKEN)
    yield Bad("negative sizes", _bmp(-40, 40), ANY - {"ok"})
    yield Bad("negative sizes", b"P6 -40 40 255\n" + b"x" * 9999, BROKEN)


def bombs(rng: random.Random) -> Iterator[Bad]:
    """Yield small files that unpack to many bytes, or take very long to read."""
    side = int(MAX_PIXELS**0.5)
    flood = bytes(rng.randrange(20, 60) * 2**20)
    good = photograph(rng)
    yield Bad("png bomb", png(side, side, bytes(side * (3 * side + 1))), frozenset({"ok"}))
    yield Bad("png bomb", png(40, 32, flood), ANY)  # more data than pixels
    bomb = zlib.compress(flood, 9)
    for name, data in ((b"iCCP", b"p\0\0" + bomb), (b"zTXt", b"t\0\0" + bomb), (b"iTXt", b"t\0\1\0\0\0" + bomb)):
        yield Bad("png text bomb", good[:33] + chunk(name, data) + good[33:], ANY)
    texts = b"".join(chunk(b"zTXt", b"t%d\0\0" % i + zlib.compress(bytes(2**20 - 1))) for i in range(80))
    yield Bad("png text bomb", good[:33] + texts + good[33:], ANY)
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "JPEG", progressive=True)
    jpeg = buffer.getvalue()
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    yield Bad("jpeg of endless scans", jpeg[:-2] + scan * 50_000 + jpeg[-2:], BROKEN)
    yield Bad("endless header", b"\xff\xd8" + b"\xff" * 3 * 2**20, BROKEN)
    yield Bad("endless header", b"P3 " + b"#" * 3 * 2**20, BROKEN)
    yield Bad("endless header", b"GIF89a" + struct.pack("<HHBBB", 40, 32, 0, 0, 0) + b"!\xfe" + b"\1c" * 2**20, BROKEN)
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * 2**13 + b"\0"
    gif = photograph(rng, "GIF")
    where = 13 + 3 * 2 ** ((gif[10] & 7) + 1)
    yield Bad("endless header", gif[:where] + comment + gif[where:], ANY)


def metadata_garbage(rng: random.Random) -> Iterator[Bad]:
    """Yield images with intact pixels and broken EXIF, ICC and XMP data, which must be ok."""
    for form in ("JPEG", "PNG", "WEBP"):
        with Image.open(io.BytesIO(photograph(rng, form))) as image:
            for _ in range(3):
                junk = rng.randbytes(rng.randrange(1, 3000))
                buffer = io.BytesIO()
                image.save(buffer, form, exif=b"Exif\0\0II*\0" + junk, icc_profile=junk)
                yield Bad("exif and icc garbage", buffer.getvalue(), frozenset({"ok"}))
            tags = b"".join(struct.pack("<HHII", 1000 + i, 1, 20_000, 8) for i in range(1000))
            overlapping = (
                b"II*\0" + struct.pack("<I", 20_008) + bytes(20_000) + struct.pack("<H", 1000) + tags + bytes(4)
            )
            buffer = io.BytesIO()
            image.save(buffer, form, exif=b"Exif\0\0" + overlapping)
            yield Bad("exif bomb", buffer.getvalue(), frozenset({"ok"}))
    for tag in range(65000, 65005):
        yield Bad("tiff tags", _tiff(40, 32, (tag, 1, 2**32 - 1, 8)) + rng.randbytes(40 * 32), ANY)
        yield Bad("tiff tags", _tiff(40, 32, (tag, 12, rng.randrange(2**29), rng.randrange(2**32))), ANY)


def animations(rng: random.Random) -> Iterator[Bad]:
    """Yield animations, of which the first frame is labelled."""
    frames = [Image.open(io.BytesIO(photograph(rng))) for _ in range(5)]
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
        data = buffer.getvalue()
        yield Bad("animation", data, frozenset({"ok"}))
        yield Bad("animation cut", data[: len(data) - rng.randrange(1, 200)], ANY)


class Creates:
    """An object that creates a file when it is unpickled, which must never happen."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str, int]]:
        return os.open, (self.path, os.O_CREAT)


def impostors(rng: random.Random, canary: str) -> Iterator[Bad]:
    """Yield other files under the names of images. `canary` is a file that exists if one of them was executed."""
    script = f"(%pipe%touch {canary}) (w) file".encode()
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 32\n%%EndComments\n" + script + b"\nshowpage\n"
    svg = b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>'
    picture = photograph(rng)
    things = {
        "html": b"<html>404 Not Found</html>" * rng.randrange(1, 9),
        "elf": b"\x7fELF\x02\x01\x01" + rng.randbytes(200),
        "svg": svg,
        "pdf": b"%PDF-1.7\n1 0 obj<</OpenAction<</S/Launch/F(" + canary.encode() + b")>>>>\n%%EOF",
        "postscript": eps,
        "dos eps": b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIII", 32, len(eps), 0, 0, 0, 0) + bytes(4) + eps,
        "imagemagick": b"push graphic-context\nimage over 0,0 0,0 'https://x/\"|touch " + canary.encode() + b"\"'\n",
        "zip": b"PK\x03\x04" + rng.randbytes(100),
        "gzip of a picture": gzip.compress(picture),
        "numpy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }" + b" " * 50,
        "heic": b"\0\0\0\x18ftypheic" + rng.randbytes(50),
        "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + rng.randbytes(50),
        "psd": b"8BPS\0\1" + bytes(20),
        "noise": rng.randbytes(rng.randrange(17, 2000)),
        "nothing": b"",
        "one byte": rng.randbytes(1),
    }
    for name, data in things.items():
        yield Bad(f"wrong magic: {name}", data, BROKEN)
    for protocol in range(6):
        pickled = pickle.dumps(Creates(canary), protocol)
        yield Bad("pickle", pickled, BROKEN)
        yield Bad("pickle behind a picture", picture + pickled, frozenset({"ok"}))
        yield Bad("pickle under a magic", b"\x89PNG\r\n\x1a\n" + pickled, BROKEN)
    for form in FORMATS:
        head = photograph(rng, form)[: rng.randrange(4, 20)]
        yield Bad("half a header", head + rng.randbytes(500), ANY - {"ok"})
        yield Bad("polyglot", photograph(rng, form) + b"<script>" + eps, frozenset({"ok"}))


def damaged(rng: random.Random, count: int) -> Iterator[Bad]:
    """Yield ``count`` images that are truncated or have flipped bits, of each format in turn."""
    forms = list(FORMATS)
    for number in range(count):
        form = forms[number % len(forms)]
        data = photograph(rng, form)
        if number // len(forms) % 2:
            cut = rng.choice([rng.randrange(0, 64), rng.randrange(len(data)), len(data) // 2])
            statuses = BROKEN if cut <= len(data) // 2 else ANY
            yield Bad(f"cut {form}", data[:cut], statuses | (TOO_LARGE | {"too_small"} if cut < 64 else frozenset()))
        else:
            flipped = bytearray(data)
            for _ in range(rng.choice([1, 1, 2, 8, 64])):
                flipped[rng.randrange(len(data) if rng.random() < 0.5 else 64)] ^= 1 << rng.randrange(8)
            yield Bad(f"flipped {form}", bytes(flipped), ANY)


def small_ones(rng: random.Random) -> Iterator[Bad]:
    """Yield images with a side that is too short."""
    for size in ((1, 1), (15, 40), (40, 15), (2000, 3)):
        yield Bad("too small", photograph(rng, "PNG", size), frozenset({"too_small"}))


def bad_images(rng: random.Random, canary: str, count: int) -> list[Bad]:
    """Return about ``count`` bad images, shuffled: each handmade one, and truncated and flipped ones for the rest."""
    fixed: list[Bad] = [
        *declared_huge(rng), *metadata_garbage(rng), *animations(rng), *impostors(rng, canary), *small_ones(rng),
        *bombs(rng),
    ]  # fmt: skip
    images = [*fixed, *damaged(rng, max(count - len(fixed), 0))]
    rng.shuffle(images)
    return images
