"""Tars with every kind of damage: the samples before it are complete, and one row reports it."""

import bz2
import gzip
import io
import tarfile

import pytest
from tars import link, outcome, read, tar_of

from pipeline.readers.samples import ShardError
from pipeline.readers.tar import read_tar


def three_samples(**options) -> tuple[bytes, list[int]]:
    """Return a tar of three samples with an image and a text each, and the offsets of its six headers and its end."""
    members = [(f"{key}.{kind}", kind.encode() * size) for key in "abc" for kind, size in (("jpg", 250), ("txt", 10))]
    offsets = [len(tar_of(*members[:count], end=False, **options)) for count in range(7)]
    return tar_of(*members, **options), offsets


def test_a_tar_cut_at_every_offset(caplog):
    data, offsets = three_samples()
    intact = read(data)
    assert [sample.status for sample in intact] == ["ok"] * 3
    for cut in range(513, offsets[6], 37):
        samples = read(data[:cut])
        complete = sum(cut >= offsets[2 * number + 2] for number in range(3))
        assert samples[:complete] == intact[:complete], cut
        if cut not in offsets:
            assert samples[-1].status == "truncated", cut
            assert len(samples) <= complete + 2


@pytest.mark.parametrize(
    ("header", "extra", "expected"),
    [
        (2, 0, [("a", "ok"), ("", "truncated")]),  # between samples: only the end marker is missing
        (2, 100, [("a", "ok"), ("", "truncated")]),  # in the header of b.jpg
        (2, 512, [("a", "ok"), ("b", "truncated")]),  # before the data of b.jpg
        (2, 900, [("a", "ok"), ("b", "truncated")]),  # in the data of b.jpg
        (3, -5, [("a", "ok"), ("b", "ok"), ("", "truncated")]),  # in the padding after b.jpg
        (3, 100, [("a", "ok"), ("b", "ok"), ("", "truncated")]),  # in the header of b.txt
        (3, 520, [("a", "ok"), ("b", "truncated")]),  # in the data of b.txt
        (6, 0, [("a", "ok"), ("b", "ok"), ("c", "ok"), ("", "truncated")]),  # no end marker
        (6, 512, [("a", "ok"), ("b", "ok"), ("c", "ok")]),  # half an end marker
    ],
)
def test_a_tar_that_ends_in_the_middle(header, extra, expected):
    data, offsets = three_samples()
    assert outcome(data[: offsets[header] + extra]) == expected


def test_a_missing_end_marker_is_what_the_row_of_a_truncated_tar_names():
    data, offsets = three_samples()
    assert "no end-of-archive marker" in read(data[: offsets[6]])[-1].error


def test_a_sample_whose_image_is_cut_off_is_truncated():
    data = tar_of(("a.txt", b"t"), ("a.jpg", b"A"))
    assert outcome(data[: 1024 + 100]) == [("a", "truncated")]


def test_broken_headers_in_the_middle_are_not_taken_for_the_end():
    data, offsets = three_samples()
    for damage in (b"\xff" * 512, b"\0" * 512, b"\0" * 1024):
        broken = data[: offsets[2]] + damage + data[offsets[2] + len(damage) :]
        samples = read(broken)
        assert [(sample.key, sample.status) for sample in samples] == [("a", "ok"), ("", "truncated")], damage
    assert "zeros in mid-file" in samples[-1].error


def test_concatenated_tars_are_noticed():
    data, _ = three_samples()
    assert [status for _, status in outcome(data + data)] == ["ok"] * 3 + ["truncated"]


def test_the_key_of_a_truncated_row_may_repeat_another():
    data = tar_of(("d/a.jpg", b"A"), ("d/a.jpg", b"A" * 600))
    assert outcome(data[:1600]) == [("d/a", "ok"), ("d/a", "truncated")]


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 5000, b"<html>404</html>", bz2.compress(b"x" * 9999), gzip.compress(b"no tar", mtime=0)]
)
def test_a_file_that_is_not_a_tar_is_a_shard_error(data):
    with pytest.raises(ShardError, match=r"^https://host/the\.tar: .*tar header"):
        list(read_tar(io.BytesIO(data), "https://host/the.tar?sig=abc"))


def test_an_empty_tar_and_a_tar_without_samples(caplog):
    assert read(tar_of()) == []
    caplog.clear()
    assert read(tar_of(("README", b"x"), link("other"))) == []
    assert "no samples" in caplog.text


def test_gzip_intact_in_several_members_and_damaged():
    data, offsets = three_samples()
    assert outcome(gzip.compress(data)) == outcome(data)
    assert outcome(gzip.compress(data[:2000]) + gzip.compress(data[2000:])) == outcome(data)
    # In a gzip file without compression, a cut at the same place also cuts the tar.
    stored = gzip.compress(data, compresslevel=0)
    samples = read(stored[: offsets[3] + 100])
    assert [(sample.key, sample.status) for sample in samples] == [("a", "ok"), ("b", "ok"), ("", "truncated")]
    assert "gzip" in samples[-1].error
    wrong_checksum = gzip.compress(data)[:-8] + b"\0" * 8
    assert outcome(wrong_checksum) == [*outcome(data), ("", "truncated")]


def test_headers_that_claim_absurd_sizes():
    huge = tarfile.TarInfo("b.jpg")
    huge.size = 2**60
    claims = tar_of(("a.jpg", b"A"), end=False) + huge.tobuf(tarfile.GNU_FORMAT) + b"\0" * 5000
    assert outcome(claims) == [("a", "ok"), ("b", "truncated")]
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        huge.type, huge.size = kind, 2**40
        claims = tar_of(("a.jpg", b"A"), end=False) + huge.tobuf(tarfile.GNU_FORMAT) + b"\0" * 5000
        assert outcome(claims) == [("a", "ok"), ("", "truncated")]
    huge.type, huge.size = tarfile.REGTYPE, -512
    claims = tar_of(("a.jpg", b"A"), end=False) + huge.tobuf(tarfile.GNU_FORMAT) + b"\0" * 5000
    assert outcome(claims) == [("a", "ok"), ("", "truncated")]
    sparse = tarfile.TarInfo("b.jpg")
    sparse.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,0",
        "GNU.sparse.size": str(2**60),
    }
    assert outcome(tar_of(("a.jpg", b"A"), sparse, ("c.jpg", b"C"))) == [("a", "ok"), ("b", "no_image"), ("c", "ok")]


def test_errors_of_the_store_are_raised_unchanged():
    data, _ = three_samples()

    class Failing(io.BytesIO):
        def readinto(self, buffer):
            if self.tell() > 0:
                raise OSError("503 slow down")
            return super().readinto(memoryview(buffer)[:2048])

    with pytest.raises(OSError, match="503"):
        list(read_tar(Failing(data), "the.tar"))


def test_a_changed_byte_never_raises_another_error():
    data, _ = three_samples(format=tarfile.PAX_FORMAT)
    for offset in range(0, len(data), 11):
        for value in (0x00, 0xFF, ord("9")):
            broken = data[:offset] + bytes([value]) + data[offset + 1 :]
            try:
                read(broken)
            except ShardError:
                assert offset < 512


def test_only_one_sample_is_in_memory():
    reader = read_tar(io.BytesIO(tar_of(("a.jpg", b"A"), ("b.jpg", b"B" * 700))[:-1024]), "the.tar")
    assert next(reader).image == b"A"
    reader.close()
