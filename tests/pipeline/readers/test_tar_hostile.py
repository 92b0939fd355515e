"""Tars made to hang a reader, to fill its memory, or to lose samples without a word."""

import gzip
import io
import tarfile
import time

import pytest

from pipeline.readers import samples
from pipeline.readers.samples import ShardError
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
def test_headers_before_headers_are_no_endless_recursion(extended):
    found = outcome(member("a.jpg", b"A"), extended * 2000, member("b.jpg", b"B"))
    assert found == [("a", "ok"), ("", "truncated")]
    with pytest.raises(ShardError, match="more than 8 headers"):
        outcome(extended * 2000, member("b.jpg", b"B"))


def test_a_map_of_a_sparse_file_without_end():
    sparse = bytearray(member("s.jpg", kind=tarfile.GNUTYPE_SPARSE))
    sparse[482] = 1
    sparse[148:156] = b"        "
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    more = (bytes(504) + b"\1" + bytes(7)) * 40_000
    data = gzip.compress(member("a.jpg", b"A") + bytes(sparse) + more, 1)
    found = list(read_tar(io.BytesIO(data), "the.tar"))
    assert [sample.status for sample in found] == ["ok", "truncated"]
    assert "headers of one member" in found[1].error


def test_a_sparse_file_with_data_is_passed_over():
    sparse = bytearray(member("s.jpg", b"x" * 700, tarfile.GNUTYPE_SPARSE))
    sparse[386:410] = b"00000000000\00000000001274\0"[:24]
    sparse[148:156] = b"        "
    sparse[148:156] = b"%06o\0 " % sum(sparse[:512])
    assert outcome(bytes(sparse), member("b.jpg", b"B")) == [("s", "no_image"), ("b", "ok")]


@pytest.mark.parametrize("name", ["k" * 10_000_000 + ".jpg", "/" * 10_000_000 + "x.jpg", "a/" * 5_000_000 + "x.jpg"])
def test_keys_of_megabytes_are_cut_and_stay_apart(name):
    other = "y" + name[1:]
    first, second, last = read_tar(
        io.BytesIO(b"".join([member(name, b"1"), member(other, b"2"), member("b.jpg", b"B"), bytes(1024)])), "t"
    )
    assert [first.status, second.status, last.status] == ["too_large", "too_large", "ok"]
    assert first.key != second.key
    assert max(len(first.key.encode()), len(first.error)) <= samples.MAX_KEY_BYTES


def test_a_sample_of_a_hundred_thousand_members():
    began = time.monotonic()
    (sample,) = read_tar(io.BytesIO(b"".join(member(f"a.{number}.png") for number in range(20_000)) + bytes(1024)), "t")
    assert time.monotonic() - began < 30  # looking through all members at each of them took minutes
    assert sample.status == "several_images"
    assert len(sample.error) < 3000


def test_line_breaks_in_folders_hide_nothing():
    assert outcome(member("a.b\n/c.jpg", b"1")) == [("a.b\n/c", "ok")]


def test_extensions_of_any_length_are_quoted_in_part():
    (sample,) = read_tar(io.BytesIO(member("a." + "x" * 100_000, b"1") + bytes(1024)), "t")
    assert (sample.status, len(sample.error) < 1000) == ("no_image", True)
