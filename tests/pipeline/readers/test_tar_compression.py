"""Compressed tars: gzip, bzip2 and zstd, whole and damaged."""

import bz2
import gzip
import io
import random
import tarfile

import pyarrow as pa
import pytest

from pipeline.readers.samples import ShardError
from pipeline.readers.tar import read_tar


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


COMPRESS = {"gzip": gzip.compress, "bzip2": bz2.compress, "zstd": zstd}


def tar(names: tuple[str, ...] = ("a", "b", "c"), size: int = 50_000, content: bytes | None = None) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(f"{name}.jpg")
            data = content or bytes((n * 7 + number * n // 3) % 251 for n in range(size))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def statuses(data: bytes) -> list[tuple[str, str]]:
    return [(sample.key, sample.status) for sample in read_tar(io.BytesIO(data), "the.tar")]


@pytest.mark.parametrize("name", COMPRESS)
def test_all_compressions_give_the_same_samples(name):
    plain = list(read_tar(io.BytesIO(tar()), "the.tar"))
    assert list(read_tar(io.BytesIO(COMPRESS[name](tar())), "the.tar")) == plain
    assert len(plain) == 3


@pytest.mark.parametrize("name", COMPRESS)
def test_compressed_parts_one_after_another(name):
    data = tar()
    parts = [data[:70_000], data[70_000:]]
    assert len(statuses(b"".join(map(COMPRESS[name], parts)))) == 3


@pytest.mark.parametrize("name", COMPRESS)
def test_a_truncated_file_is_not_taken_for_a_whole_one(name):
    # Random data, so that half of the file holds more than one block of 900 kB of bzip2.
    whole = COMPRESS[name](tar(content=random.Random(0).randbytes(1_500_000)))
    for length in (len(whole) - 1, len(whole) // 2):
        assert statuses(whole[:length])[-1][1] == "truncated", length


@pytest.mark.parametrize("name", COMPRESS)
def test_an_error_of_the_store_is_no_damage(name):
    data = COMPRESS[name](tar(size=3_000_000))

    class Failing(io.BytesIO):
        reads = 0

        def readinto(self, buffer):
            self.reads += 1
            if self.reads > 1:
                raise OSError("the store failed")
            return super().readinto(memoryview(buffer)[:1000])

        def read(self, size=-1):
            raise OSError("the store failed")

        read1 = read

    with pytest.raises(OSError, match="the store failed"):
        list(read_tar(Failing(data), "the.tar"))


def test_a_member_whose_name_begins_like_bzip2():
    assert statuses(tar(("BZh9x", "b"))) == [("BZh9x", "ok"), ("b", "ok")]


def test_a_zstd_file_may_begin_with_a_frame_that_is_skipped():
    assert len(statuses(b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstd(tar()))) == 3


def test_a_compressed_file_of_something_else():
    with pytest.raises(ShardError, match="do not start with a tar header"):
        statuses(zstd(b"no tar" * 1000))


def test_common_extensions_come_before_rare_ones():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("a.avif", "a.jpg", "b.jpg", "b.heic", "c.seg.png", "c.jp2"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    samples = list(read_tar(io.BytesIO(file.getvalue()), "the.tar"))
    assert [sample.image for sample in samples] == [b"a.jpg", b"b.jpg", b"c.jp2"]
