"""Tars as samples: webdataset's own grouping, and every kind of damage."""

import bz2
import gzip
import io
import json
import logging
import pickle
import tarfile

import pytest
from webdataset.tariterators import group_by_keys, tar_file_iterator

from pipeline import samples
from pipeline.samples import ShardError
from pipeline.tarshard import read_tar


def tar_of(*members, end=True, **options) -> bytes:
    """A tar of (name, data) pairs and of ready TarInfo, without padding after the end marker."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        length = tar.offset
    return file.getvalue()[: length + (1024 if end else 0)]


def link(name, kind=tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "target"
    return info


def read(data, **settings):
    found = list(read_tar(io.BytesIO(data), "the.tar", **settings))
    assert [sample.index for sample in found] == list(range(len(found)))
    for sample in found:
        assert sample.status in samples.STATUSES
        assert (sample.image is not None) == (sample.status == "ok") == (sample.error == "")
        sample.key.encode()
    return found


def outcome(data, **settings):
    return [(sample.key, sample.status) for sample in read(data, **settings)]


def test_samples_with_their_meta():
    data = tar_of(
        ("a.json", b'{"caption": "caf\xc3\xa9", "n": 1}'), ("a.JPG", b"A"), ("a.txt", b"text"), ("a.npy", b"no"),
        ("b.png", b"B"), ("c.jpg", b"C"), ("c.json", b"{broken"), ("c.cls", b"7"),
    )  # fmt: skip
    a, b, c = read(data)
    assert (a.key, a.image, a.status) == ("a", b"A", "ok")
    assert a.meta == '{"json": {"caption": "café", "n": 1}, "txt": "text"}'
    assert (b.image, b.meta) == (b"B", "")
    assert json.loads(c.meta) == {"json": "{broken", "cls": "7"}


@pytest.mark.parametrize("value", [b"NaN", b"1e999", b"[" * 100_000, b'"\\ud800"', b"\xff\xfe", b"9" * 5000])
def test_strange_json_gives_meta_that_every_reader_takes(value):
    (sample,) = read(tar_of(("a.json", value), ("a.jpg", b"A")))
    assert sample.status == "ok"
    strict = json.loads(sample.meta.encode(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert set(strict) == {"json"}


def test_sane_tars_agree_with_webdataset(tmp_path):
    files = [
        (f"{folder}{number}{dots}.{extension}", f"{folder}{number}{extension}".encode())
        for folder in ("", "22.0/", "a/b c/", "./", "ü/")
        for number in range(3)
        for dots in ("", ".x")
        for extension in ("jpg", "json", "seg.npy")
    ]
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of(*files, ("__meta__", b""), ("no_extension", b""), ("__x__/a.jpg", b"")))
    with open(path, "rb") as file:
        members = [{**member, "__url__": ""} for member in tar_file_iterator(file)]
        expected = [(sample["__key__"], sample.get("jpg")) for sample in group_by_keys(members)]
    ours = read(path.read_bytes(), image_field="jpg")
    assert [(sample.key, sample.image) for sample in ours if sample.status == "ok"] == [
        (key, image) for key, image in expected if image is not None
    ]
    assert {sample.key for sample in ours} == {key for key, _ in expected}


def test_keys_stay_as_they_are():
    names = ["22.0/1.1.png", "../../etc/passwd.jpg", "/absolute/x.jpg", "日本/é.jpg", "a b.jpg", "x.y.z.jpg"]
    keys = [sample.key for sample in read(tar_of(*[(name, b"1") for name in names]))]
    assert keys == ["22.0/1", "../../etc/passwd", "/absolute/x", "日本/é", "a b", "x"]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_tar_format_and_names_that_are_not_utf8(form):
    long = "d/" * 60 + "x"
    data = tar_of((f"{long}.jpg", b"1"), ("\udcff.jpg", b"2"), format=form, errors="surrogateescape")
    assert outcome(data) == [(long, "ok"), ("\\xff", "ok")]


def test_no_image_and_several():
    data = tar_of(
        ("a.txt", b"t"), ("b.jpg", b"1"), ("b.png", b"2"), ("c.1.png", b"3"), ("d.a.png", b""), ("d.b.png", b""),
        ("e.jpg", b"4"), ("e.seg.png", b""), ("f.seg.png", b""), ("f.jpg", b"5"),
    )  # fmt: skip
    a, b, c, d, e, f = read(data)
    assert (a.status, a.error) == ("no_image", "an image is missing; the sample has txt")
    assert (b.status, b.error[:8]) == ("several_images", "jpg, png")
    assert (d.status, d.error[:12]) == ("several_images", "a.png, b.png")
    assert [sample.image for sample in (c, e, f)] == [b"3", b"4", b"5"]
    assert [sample.image for sample in read(data, image_field="PNG")] == [None, b"2", None, None, None, None]
    assert "'png'" in read(data, image_field="png")[0].error


class Creates:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["pkl", "pickle", "pyd", "pth", "npy", "json", "txt", "cls"])
def test_nothing_is_unpickled(kind, tmp_path):
    canary = tmp_path / "canary"
    (sample,) = read(tar_of((f"a.{kind}", pickle.dumps(Creates(str(canary)))), ("a.jpg", b"A")))
    assert (sample.status, sample.image) == ("ok", b"A")
    assert not canary.exists()


def test_links_devices_and_folders():
    folder = tarfile.TarInfo("folder.jpg")
    folder.type = tarfile.DIRTYPE
    data = tar_of(
        folder, ("folder.jpg/a.jpg", b"A"), link("l.jpg"), link("h.jpg", tarfile.LNKTYPE),
        link("p.jpg", tarfile.FIFOTYPE), link("readme"), ("b.jpg", b"B"), link("b.json"),
        ("d/.hidden.jpg", b""), ("._b.jpg", b""),
    )  # fmt: skip
    found = read(data)
    assert [(sample.key, sample.status) for sample in found] == [
        ("folder.jpg/a", "ok"), ("l", "no_image"), ("h", "no_image"), ("p", "no_image"), ("b", "ok"),
    ]  # fmt: skip
    assert [found[place].error.rpartition("(")[2] for place in (1, 2, 3)] == [
        "a symbolic link)",
        "a hard link)",
        "a device)",
    ]


def test_duplicate_keys_are_flagged_where_they_repeat():
    a, b = [("a.jpg", b"1"), ("a.txt", b"t")], [("b.jpg", b"2")]
    found = read(tar_of(*a, *b, *a, *a, *b))
    assert [(sample.key, sample.status) for sample in found] == [
        ("a", "ok"), ("b", "ok"), ("a", "duplicate_key"), ("a", "duplicate_key"), ("b", "duplicate_key"),
    ]  # fmt: skip
    assert "sample 0 " in found[3].error
    assert "sample 1 " in found[4].error


def test_what_is_too_large_is_not_read(monkeypatch):
    monkeypatch.setattr(samples, "MAX_SAMPLE_BYTES", 1000)
    monkeypatch.setattr(samples, "MAX_META_BYTES", 100)
    data = tar_of(
        ("a.jpg", b"x" * 1001), ("a.txt", b"t"), ("b.jpg", b"x" * 1000), ("b.txt", b"y" * 60), ("b.json", b"1" * 60),
        ("c.jpg", b"C"), ("c.txt", b"\xff" * 60),
    )  # fmt: skip
    a, b, c = read(data)
    assert (a.status, a.error, a.meta) == ("too_large", "jpg has 1001 bytes; at most 1000 are read", '{"txt": "t"}')
    assert (b.status, len(b.image)) == ("ok", 1000)
    assert json.loads(b.meta) == {"__note__": "left out: 120 bytes of JSON and text; at most 100 are carried"}
    assert "left out" in c.meta


def three_samples(**options) -> tuple[bytes, list[int]]:
    """A tar of three samples of an image and a text; the offsets of the six headers and of the end."""
    members = [(f"{key}.{kind}", kind.encode() * size) for key in "abc" for kind, size in (("jpg", 250), ("txt", 10))]
    offsets = [len(tar_of(*members[:count], end=False, **options)) for count in range(7)]
    return tar_of(*members, **options), offsets


def test_a_tar_cut_at_every_offset(caplog):
    data, offsets = three_samples()
    whole = read(data)
    assert [sample.status for sample in whole] == ["ok"] * 3
    for cut in range(513, offsets[6], 37):
        found = read(data[:cut])
        complete = sum(cut >= offsets[2 * number + 2] for number in range(3))
        assert found[:complete] == whole[:complete], cut
        if cut not in offsets:
            assert found[-1].status == "truncated", cut
            assert len(found) <= complete + 2


@pytest.mark.parametrize(
    ("header", "extra", "expected"),
    [
        (2, 0, [("a", "ok")]),  # between samples: nothing tells that there was more
        (2, 100, [("a", "ok"), ("", "truncated")]),  # in the header of b.jpg
        (2, 512, [("a", "ok"), ("b", "truncated")]),  # before the data of b.jpg
        (2, 900, [("a", "ok"), ("b", "truncated")]),  # in the data of b.jpg
        (3, -5, [("a", "ok"), ("b", "ok"), ("", "truncated")]),  # in the padding after b.jpg
        (3, 100, [("a", "ok"), ("b", "ok"), ("", "truncated")]),  # in the header of b.txt
        (3, 520, [("a", "ok"), ("b", "truncated")]),  # in the data of b.txt
        (6, 0, [("a", "ok"), ("b", "ok"), ("c", "ok")]),  # no end marker
        (6, 512, [("a", "ok"), ("b", "ok"), ("c", "ok")]),  # half an end marker
    ],
)
def test_a_tar_that_ends_in_the_middle(header, extra, expected, caplog):
    data, offsets = three_samples()
    with caplog.at_level(logging.WARNING):
        assert outcome(data[: offsets[header] + extra]) == expected
    assert ("no end-of-archive marker" in caplog.text) == (extra == 0)


def test_a_sample_without_its_image_at_the_break_is_the_truncated_one():
    data = tar_of(("a.txt", b"t"), ("a.jpg", b"A"))
    assert outcome(data[: 1024 + 100]) == [("a", "truncated")]


def test_broken_headers_in_mid_file_are_not_the_end():
    data, offsets = three_samples()
    for damage in (b"\xff" * 512, b"\0" * 512, b"\0" * 1024):
        broken = data[: offsets[2]] + damage + data[offsets[2] + len(damage) :]
        found = read(broken)
        assert [(sample.key, sample.status) for sample in found] == [("a", "ok"), ("", "truncated")], damage
    assert "zeros in mid-file" in found[-1].error


def test_tars_one_after_another_are_noticed():
    data, _ = three_samples()
    assert [status for _, status in outcome(data + data)] == ["ok"] * 3 + ["truncated"]


def test_a_key_of_the_truncated_row_is_no_duplicate():
    data = tar_of(("d/a.jpg", b"A"), ("d/a.jpg", b"A" * 600))
    assert outcome(data[:1600]) == [("d/a", "ok"), ("d/a", "truncated")]


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 5000, b"<html>404</html>", bz2.compress(b"x" * 9999), gzip.compress(b"no tar")]
)
def test_what_is_no_tar_is_a_shard_error(data):
    with pytest.raises(ShardError, match=r"^https://host/the\.tar: .*tar header"):
        list(read_tar(io.BytesIO(data), "https://host/the.tar?sig=abc"))


def test_an_empty_tar_and_one_without_samples(caplog):
    assert read(tar_of()) == []
    caplog.clear()
    assert read(tar_of(("README", b"x"), link("other"))) == []
    assert "no samples" in caplog.text


def test_gzip_whole_in_parts_and_damaged():
    data, offsets = three_samples()
    assert outcome(gzip.compress(data)) == outcome(data)
    assert outcome(gzip.compress(data[:2000]) + gzip.compress(data[2000:])) == outcome(data)
    # Stored without compression, the break of the gzip file is one of the tar as well.
    stored = gzip.compress(data, compresslevel=0)
    found = read(stored[: offsets[3] + 100])
    assert [(sample.key, sample.status) for sample in found] == [("a", "ok"), ("b", "ok"), ("", "truncated")]
    assert "gzip" in found[-1].error
    wrong_sum = gzip.compress(data)[:-8] + b"\0" * 8
    assert outcome(wrong_sum) == [*outcome(data), ("", "truncated")]


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


def test_errors_of_the_store_pass_through():
    data, _ = three_samples()

    class Failing(io.BytesIO):
        def readinto(self, buffer):
            if self.tell() > 0:
                raise OSError("503 slow down")
            return super().readinto(memoryview(buffer)[:2048])

    found = []
    with pytest.raises(OSError, match="503"):
        found.extend(read_tar(Failing(data), "the.tar"))


def test_bytes_flipped_anywhere_never_leak_an_exception():
    data, _ = three_samples(format=tarfile.PAX_FORMAT)
    for place in range(0, len(data), 11):
        for value in (0x00, 0xFF, ord("9")):
            broken = data[:place] + bytes([value]) + data[place + 1 :]
            try:
                read(broken)
            except ShardError:
                assert place < 512


def test_only_one_sample_is_in_memory():
    reader = read_tar(io.BytesIO(tar_of(("a.jpg", b"A"), ("b.jpg", b"B" * 700))[:-1024]), "the.tar")
    assert next(reader).image == b"A"
    reader.close()
