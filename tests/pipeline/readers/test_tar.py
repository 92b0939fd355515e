"""Samples of a tar: grouping as in webdataset, keys, meta, and members that are not images."""

import json
import pickle
import tarfile

import pytest
from tars import link, outcome, read, tar_of
from webdataset.tariterators import group_by_keys, tar_file_iterator

from pipeline.readers.samples import ReadLimits


def test_samples_with_meta():
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
def test_unusual_json_gives_meta_that_every_json_reader_accepts(value):
    (sample,) = read(tar_of(("a.json", value), ("a.jpg", b"A")))
    assert sample.status == "ok"
    strict = json.loads(sample.meta.encode(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert set(strict) == {"json"}


def test_ordinary_tars_give_the_same_samples_as_webdataset(tmp_path):
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
    samples = read(path.read_bytes(), image_field="jpg")
    assert [(sample.key, sample.image) for sample in samples if sample.status == "ok"] == [
        (key, image) for key, image in expected if image is not None
    ]
    assert {sample.key for sample in samples} == {key for key, _ in expected}


def test_keys_are_not_changed():
    names = ["22.0/1.1.png", "../../etc/passwd.jpg", "/absolute/x.jpg", "日本/é.jpg", "a b.jpg", "x.y.z.jpg"]
    keys = [sample.key for sample in read(tar_of(*[(name, b"1") for name in names]))]
    assert keys == ["22.0/1", "../../etc/passwd", "/absolute/x", "日本/é", "a b", "x"]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_tar_format_and_names_that_are_not_utf8(form):
    long = "d/" * 60 + "x"
    data = tar_of((f"{long}.jpg", b"1"), ("\udcff.jpg", b"2"), format=form, errors="surrogateescape")
    assert outcome(data) == [(long, "ok"), ("\\xff", "ok")]


def test_samples_without_an_image_and_with_several():
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


class CreatesFile:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["pkl", "pickle", "pyd", "pth", "npy", "json", "txt", "cls"])
def test_nothing_is_unpickled(kind, tmp_path):
    canary = tmp_path / "canary"
    (sample,) = read(tar_of((f"a.{kind}", pickle.dumps(CreatesFile(str(canary)))), ("a.jpg", b"A")))
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
    samples = read(data)
    assert [(sample.key, sample.status) for sample in samples] == [
        ("folder.jpg/a", "ok"), ("l", "no_image"), ("h", "no_image"), ("p", "no_image"), ("b", "ok"),
    ]  # fmt: skip
    assert [samples[place].error.rpartition("(")[2] for place in (1, 2, 3)] == [
        "a symbolic link)",
        "a hard link)",
        "a device)",
    ]


def test_each_repetition_of_a_key_is_flagged():
    a, b = [("a.jpg", b"1"), ("a.txt", b"t")], [("b.jpg", b"2")]
    samples = read(tar_of(*a, *b, *a, *a, *b))
    assert [(sample.key, sample.status) for sample in samples] == [
        ("a", "ok"), ("b", "ok"), ("a", "duplicate_key"), ("a", "duplicate_key"), ("b", "duplicate_key"),
    ]  # fmt: skip
    assert "sample 0 " in samples[3].error
    assert "sample 1 " in samples[4].error


def test_images_and_meta_above_the_limits_are_not_read():
    limits = ReadLimits(max_sample_bytes=1000, max_meta_bytes=100)
    data = tar_of(
        ("a.jpg", b"x" * 1001), ("a.txt", b"t"), ("b.jpg", b"x" * 1000), ("b.txt", b"y" * 60), ("b.json", b"1" * 60),
        ("c.jpg", b"C"), ("c.txt", b"\xff" * 60),
    )  # fmt: skip
    a, b, c = read(data, limits=limits)
    assert (a.status, a.error, a.meta) == ("too_large", "jpg has 1001 bytes; at most 1000 are read", '{"txt": "t"}')
    assert (b.status, len(b.image)) == ("ok", 1000)
    assert json.loads(b.meta) == {"__note__": "left out: 120 bytes of JSON and text; at most 100 are carried"}
    assert "left out" in c.meta
