"""Tars made to hang a reader, to exhaust its memory, or to make it lose samples silently."""

import gzip
import io
import tarfile
import time

import pytest

from pipeline.readers.samples import DEFAULT_LIMITS, ShardError
from pipeline.readers.tar import read_tar


def member(name, data=b"", kind=tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def outcome(*parts: bytes, end=bytes(1024)):
    return [(sample.key, sample.status) for sample in read_tar(io.BytesIO(b"".join(parts) + end), "the.tar")]


@pytest.mark.parametrize(
    "extended", [member("x", b"9 a=bcde\n", tarfile.XHDTYPE), member("x", b"a.b\0", tarfile.GNUTYPE_LONGNAME)]
)
def test_chained_headers_do_not_recurse_endlessly(extended):
    keys = outcome(member("a.jpg", b"A"), extended * 2000, member("b.jpg", b"B"))
    assert keys == [("a", "ok"), ("", "truncated")]
    with pytest.raises(ShardError, match="more than 8 headers"):
        outcome(extended * 2000, member("b.jpg", b"B"))


def test_an_endless_map_of_a_sparse_file():
    sparse = bytearray(member("s.jpg", kind=tarfile.GNUTYPE_SPARSE))
    sparse[482] = 1
    sparse[148:156] = b"        "
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    more = (bytes(504) + b"\1" + bytes(7)) * 40_000
    data = gzip.compress(member("a.jpg", b"A") + bytes(sparse) + more, 1)
    samples = list(read_tar(io.BytesIO(data), "the.tar"))
    assert [sample.status for sample in samples] == ["ok", "truncated"]
    assert "headers of one member" in samples[1].error


def test_a_sparse_file_with_data_is_skipped():
    sparse = bytearray(member("s.jpg", b"x" * 700, tarfile.GNUTYPE_SPARSE))
    sparse[386:410] = b"00000000000\00000000001274\0"[:24]
    sparse[148:156] = b"        "
    sparse[148:156] = b"%06o\0 " % sum(sparse[:512])
    assert outcome(bytes(sparse), member("b.jpg", b"B")) == [("s", "no_image"), ("b", "ok")]


@pytest.mark.parametrize("name", ["k" * 10_000_000 + ".jpg", "/" * 10_000_000 + "x.jpg", "a/" * 5_000_000 + "x.jpg"])
def test_keys_of_megabytes_are_cut_and_stay_distinct(name):
    other = "y" + name[1:]
    first, second, last = read_tar(
        io.BytesIO(b"".join([member(name, b"1"), member(other, b"2"), member("b.jpg", b"B"), bytes(1024)])), "t"
    )
    assert [first.status, second.status, last.status] == ["too_large", "too_large", "ok"]
    assert first.key != second.key
    assert max(len(first.key.encode()), len(first.error)) <= DEFAULT_LIMITS.max_key_bytes


def test_a_sample_of_thousands_of_members():
    began = time.monotonic()
    (sample,) = read_tar(io.BytesIO(b"".join(member(f"a.{number}.png") for number in range(20_000)) + bytes(1024)), "t")
    assert time.monotonic() - began < 30  # searching all members for each member took minutes
    assert sample.status == "several_images"
    assert len(sample.error) < 3000


def test_line_breaks_in_folder_names_hide_no_sample():
    assert outcome(member("a.b\n/c.jpg", b"1")) == [("a.b\n/c", "ok")]


def test_long_extensions_are_quoted_in_part():
    (sample,) = read_tar(io.BytesIO(member("a." + "x" * 100_000, b"1") + bytes(1024)), "t")
    assert (sample.status, len(sample.error) < 1000) == ("no_image", True)
