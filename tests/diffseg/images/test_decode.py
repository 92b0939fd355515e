"""Decoding: every mode of an image, and damaged or hostile files."""

import io
import pickle
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageFile

from diffseg.images.decode import ImageError, decode_image

HEIGHT, WIDTH = 24, 40


def sample_pixels() -> np.ndarray:
    """Return uint8 [24, 40, 3], smooth, and different in each corner."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x * 6, y * 10, (x + y) * 3], axis=-1).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """Return a PNG with this header, whether or not the pixels fit it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_same_pixels(kind):
    array = decode_image(encoded(sample_pixels(), kind))
    assert array.dtype == np.uint8
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, sample_pixels())


@pytest.mark.parametrize(("kind", "tolerance"), [("JPEG", 8), ("WEBP", 25)])
def test_lossy_formats_give_nearly_the_same_pixels(kind, tolerance):
    array = decode_image(encoded(sample_pixels(), kind, quality=100))
    assert np.abs(array.astype(int) - sample_pixels()).max() <= tolerance


def test_bytes_path_and_pil_image_agree(tmp_path):
    data = encoded(sample_pixels())
    path = tmp_path / "a.png"
    path.write_bytes(data)
    opened = Image.open(io.BytesIO(data))
    for source in (data, path, str(path), opened, opened):
        np.testing.assert_array_equal(decode_image(source), sample_pixels())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied_once(orientation, kind):
    # Each orientation says which of these turned the upright image into the stored one.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](sample_pixels())
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    data = encoded(np.ascontiguousarray(stored), kind, exif=exif, **options)
    for source in (data, Image.open(io.BytesIO(data))):
        array = decode_image(source)
        assert array.shape == (HEIGHT, WIDTH, 3)
        assert array.flags.c_contiguous
        assert np.abs(array.astype(int) - sample_pixels()).max() <= 8


def test_an_image_with_broken_exif_is_decoded():
    data = encoded(sample_pixels(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xffgarbage")
    assert decode_image(data).shape == (HEIGHT, WIDTH, 3)


def test_greyscale_and_one_bit_images_become_rgb():
    grey = sample_pixels()[..., 0]
    np.testing.assert_array_equal(decode_image(encoded(grey)), np.stack([grey] * 3, -1))
    bits = Image.fromarray(grey).convert("1", dither=Image.Dither.NONE)
    np.testing.assert_array_equal(decode_image(encoded(bits))[..., 1], np.where(grey > 127, 255, 0))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_composited_on_white(mode):
    image = Image.fromarray(sample_pixels()).convert(mode)
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:, 20:], alpha[0, 0] = 255, 128
    image.putalpha(Image.fromarray(alpha))
    array = decode_image(encoded(image))
    assert (array[1:, :20] == 255).all()
    np.testing.assert_array_equal(array[:, 20:], np.asarray(image.convert("RGB"))[:, 20:])
    assert 126 <= array[0, 0, 0] <= 128  # half of black on white


@pytest.mark.parametrize("transparency", [3, bytes([255, 255, 255, 0])])
def test_a_palette_with_transparency_is_composited_on_white(transparency):
    image = Image.fromarray(np.repeat(np.arange(4, dtype=np.uint8), 8 * 32).reshape(32, 32), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    array = decode_image(encoded(image, transparency=transparency))
    assert array[[0, 8, 16, 24], 0].tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90], [255, 255, 255]]


def test_cmyk_and_ycck_become_rgb():
    red = Image.new("RGB", (32, 32), (200, 30, 30)).convert("CMYK")
    assert np.abs(decode_image(encoded(red, "TIFF"))[0, 0].astype(int) - (200, 30, 30)).max() <= 2
    assert np.abs(decode_image(encoded(red, "JPEG", quality=100))[0, 0].astype(int) - (200, 30, 30)).max() <= 4


def test_sixteen_bits_are_scaled_not_clipped():
    values = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 68).astype(np.uint16)
    expected = np.rint(values / 257.0).astype(np.uint8)
    for kind in ("PNG", "TIFF", "PPM"):
        np.testing.assert_array_equal(decode_image(encoded(values, kind))[..., 0], expected, err_msg=kind)
    rgb = png(20, 20, 16, 2, (b"\0" + b"\x80\xff" * 60) * 20)
    assert decode_image(rgb)[0, 0].tolist() == [128, 128, 128]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 257, 65535], np.int32), [0, 1, 255]),
        (np.array([-100, 20, 100], np.int32), [0, 153, 255]),
        (np.array([0, 0.5, 1], np.float32), [0, 128, 255]),
        (np.array([0, 99.6, 255], np.float32), [0, 100, 255]),
        (np.array([1000, 1500, 2000], np.float32), [0, 128, 255]),
        (np.array([7e9, 7e9, 7e9], np.float32), [0, 0, 0]),
    ],
)
def test_wide_integers_and_floats_are_scaled_by_their_range(values, expected):
    data = encoded(np.repeat(values[None], 20, 0).repeat(8, 1), "TIFF")
    assert decode_image(data)[0, ::8, 0].tolist() == expected


def test_non_finite_floats_are_refused():
    with pytest.raises(ImageError, match="NaN") as caught:
        decode_image(encoded(np.full((20, 20), np.nan, np.float32), "TIFF"))
    assert caught.value.status == "undecodable"


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(kind):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("#c80000", "#00c800")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode_image(data)[0, 0].tolist() == [200, 0, 0]


def bad_files() -> dict[str, tuple[bytes, str, str]]:
    jpeg, whole = encoded(sample_pixels(), "JPEG"), encoded(sample_pixels())
    return {
        "empty": (b"", "undecodable", "empty"),
        "text": (b"<html>not found</html>", "undecodable", "not an image.*<html>not"),
        "truncated jpeg": (jpeg[:-40], "undecodable", "truncated"),
        "jpeg header only": (jpeg[:20], "undecodable", "JPEG header"),
        "truncated png": (whole[: len(whole) * 2 // 3], "undecodable", "pixels"),
        "png with a broken checksum": (whole[:50] + b"\xff" + whole[51:], "undecodable", "."),
        "truncated webp": (encoded(sample_pixels(), "WEBP")[:-30], "undecodable", "."),
        "truncated gif": (encoded(sample_pixels(), "GIF")[:-200], "undecodable", "."),
        "truncated tiff": (encoded(sample_pixels(), "TIFF")[:-500], "undecodable", "."),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "undecodable", "not an image"),
        "bomb": (png(50000, 50000, 8, 2, b""), "too_large", "50000 x 50000 = 2500000000 pixels.*67108864"),
        "bomb below Pillow's own limit": (png(10000, 10000, 8, 2, b""), "too_large", "100000000 pixels"),
        "1x1": (encoded(np.zeros((1, 1, 3), np.uint8)), "too_small", "1 x 1 pixels.*at least 16"),
        "20000x3": (encoded(np.zeros((3, 20000, 3), np.uint8)), "too_small", "20000 x 3"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_the_error_of_a_bad_file_has_a_status_and_a_reason(name):
    data, status, message = bad_files()[name]
    with pytest.raises(ImageError, match=message) as caught:
        decode_image(data)
    assert caught.value.status == status


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_random_damage_raises_no_other_exception(kind):
    whole = encoded(sample_pixels(), kind)
    generator = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole[: generator.integers(1, len(whole) + 1)])
        for index in generator.integers(0, len(data), 4):
            data[index] = generator.integers(256)
        with suppress(ImageError):
            assert decode_image(bytes(data), min_side=1, max_pixels=10**6).dtype == np.uint8


def test_limits_can_be_set():
    data = encoded(sample_pixels())
    assert decode_image(data, max_pixels=HEIGHT * WIDTH, min_side=HEIGHT).shape == (HEIGHT, WIDTH, 3)
    for limits, status in (({"max_pixels": HEIGHT * WIDTH - 1}, "too_large"), ({"min_side": HEIGHT + 1}, "too_small")):
        for source in (data, Image.open(io.BytesIO(data))):
            with pytest.raises(ImageError) as caught:
                decode_image(source, **limits)
            assert caught.value.status == status


def test_settings_of_pillow_and_of_warnings_are_unchanged_after_decoding_in_threads():
    def settings() -> tuple:
        return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)

    before = settings()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode_image, [encoded(sample_pixels())] * 40))
    assert settings() == before


def test_a_missing_file_raises_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        decode_image(tmp_path / "no.png")


def test_threads_give_the_same_pixels():
    files = [encoded(np.roll(sample_pixels(), shift, 1), kind) for shift in range(8) for kind in ("JPEG", "PNG", "GIF")]
    alone = [decode_image(data) for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(decode_image, files * 4))
    for array, expected in zip(together, alone * 4, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_an_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(ImageError("too_small", "1 x 1")))
    assert (error.status, str(error)) == ("too_small", "1 x 1")
