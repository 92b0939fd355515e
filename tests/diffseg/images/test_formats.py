"""AVIF, JPEG 2000, HEIC and JPEG XL."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from diffseg.images import plugins
from diffseg.images.decode import ImageError, decode_image
from diffseg.images.plugins import jxl_size

PIXELS = np.asarray(Image.linear_gradient("L").rotate(30).resize((60, 40)).convert("RGB"))


def encoded(kind: str, size: tuple[int, int] = (60, 40), **options) -> bytes:
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    elif kind == "JXL":
        import pillow_jxl  # noqa: F401 - registers the format
    file = io.BytesIO()
    Image.fromarray(PIXELS).resize(size).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "HEIF", "JXL"])
def test_the_pixels_are_read(kind):
    pixels = decode_image(encoded(kind, quality=90) if kind != "JPEG2000" else encoded(kind))
    assert pixels.shape == PIXELS.shape
    assert np.abs(pixels.astype(int) - PIXELS).mean() < 4


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "HEIF", "JXL"])
def test_the_declared_size_is_checked_before_pixels_are_decoded(kind, monkeypatch):
    data = encoded(kind)
    if kind == "JXL":
        monkeypatch.setattr(plugins, "_factory", lambda *_: pytest.fail("the pixels were decoded"))
    with pytest.raises(ImageError, match="60 x 40") as caught:
        decode_image(data, max_pixels=2399)
    assert caught.value.status == "too_large"


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "HEIF", "JXL"])
def test_a_truncated_file_is_undecodable(kind):
    data = encoded(kind)
    for length in (14, 40, len(data) // 2):
        with pytest.raises(ImageError) as caught:
            decode_image(data[:length])
        assert caught.value.status == "undecodable"


@pytest.mark.parametrize(("kind", "module", "extra"), [("HEIF", "pillow_heif", "heic"), ("JXL", "pillow_jxl", "jxl")])
def test_the_message_names_the_extra_of_a_missing_package(kind, module, extra, monkeypatch):
    data = encoded(kind)
    plugins._factory.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImageError, match=rf"pip install 'diffseg-pipeline\[{extra}\]'"):
        decode_image(data)
    plugins._factory.cache_clear()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_the_orientation_is_applied_once(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode_image(encoded("PNG", exif=exif.tobytes()))
    pixels = decode_image(encoded(kind, exif=exif.tobytes(), quality=95))
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < 4


@pytest.mark.parametrize("size", [(16, 16), (257, 40), (8, 24), (600, 9), (320, 240), (4096, 16)])
@pytest.mark.parametrize("container", [False, True])
def test_the_header_of_jpeg_xl_declares_the_size(size, container):
    assert jxl_size(encoded("JXL", size, use_container=container)) == size
