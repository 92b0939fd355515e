"""PNG with large profiles and texts."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffseg.images.decode import ImageError, decode_image
from diffseg.images.png_chunks import MAX_CHUNK_BYTES, without_large_chunks

LARGE = b"x y z " * 250_000


def png() -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((64, 48)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(*chunks: bytes, at_end: bool = False) -> bytes:
    data = png()
    place = len(data) - 12 if at_end else 33  # before IEND, or after IHDR
    return data[:place] + b"".join(chunks) + data[place:]


CHUNKS = {
    "profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(os.urandom(1_200_000))),
    "text": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LARGE)),
    "international text": chunk(b"iTXt", b"k\0\1\0en\0key\0" + zlib.compress(LARGE)),
    "plain text": chunk(b"tEXt", b"k\0" + LARGE),
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("at_end", [False, True])
def test_a_large_chunk_is_skipped_and_the_pixels_are_read(name, at_end):
    assert np.array_equal(decode_image(with_chunks(CHUNKS[name], at_end=at_end)), decode_image(png()))


def test_many_texts_that_are_large_together_are_skipped():
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(MAX_CHUNK_BYTES)))
    assert np.array_equal(decode_image(with_chunks(*[text] * 70)), decode_image(png()))


def test_the_orientation_of_a_file_with_a_large_profile_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode_image(with_chunks(CHUNKS["profile"], chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))
    assert pixels.shape == (64, 48, 3)


def test_the_bounds_stay():
    data = with_chunks(CHUNKS["profile"])
    with pytest.raises(ImageError, match="64 x 48") as caught:
        decode_image(data, max_pixels=100)
    assert caught.value.status == "too_large"
    bomb = with_chunks(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**30), 9)))
    assert decode_image(bomb).shape == (48, 64, 3)
    with pytest.raises(ImageError, match="pixels cannot be decoded"):
        decode_image(data[:-1000])
    with pytest.raises(ImageError):
        decode_image(with_chunks(*[chunk(b"tEXt", b"k\0v")] * 100_000))


def test_other_files_are_left_alone():
    assert without_large_chunks(io.BytesIO(png())) is None
    assert without_large_chunks(io.BytesIO(b"GIF89a")) is None
    assert without_large_chunks(io.BytesIO(b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffiCCP")) is None
