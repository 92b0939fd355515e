"""`decode_image` refuses files that would keep a decoder busy."""

import io

import pytest
from PIL import Image

from diffseg.images.decode import ImageError, decode_image


def test_a_jpeg_with_too_many_scans_is_refused():
    buffer = io.BytesIO()
    Image.new("RGB", (512, 512)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    assert decode_image(data).shape == (512, 512, 3)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match="100010 scans"):
        decode_image(data[:-2] + scan * 100_000 + data[-2:])


@pytest.mark.parametrize("data", [b"\xff\xd8" + b"\xff" * 10**6, b"P3 " + b"#" * 10**6, b"P3 " + b" " * 10**6])
def test_a_file_that_is_all_header_is_refused(data, tmp_path):
    (tmp_path / "a.jpg").write_bytes(data)
    for source in (data, tmp_path / "a.jpg"):
        with pytest.raises(ImageError, match="goes on after"):
            decode_image(source)
