"""`read_shard`: the same photographs from a tar, a Parquet file and a folder, at any URL."""

import io
import os
import pickle
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import samples
from pipeline.shards import STATUSES, Shard, ShardError, find_shards, read_shard
from pipeline.storage import Storage

IMAGES = {f"{number:02d}": b"image %d" % number for number in range(20)}


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def as_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for key, data in IMAGES.items():
            info = tarfile.TarInfo(f"{key}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def as_parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"key": list(IMAGES), "image": list(IMAGES.values())}), file)
    return file.getvalue()


def test_three_kinds_give_the_same_samples(root):
    storage = Storage(url=root)
    storage.write_bytes("tars/a.tar", as_tar())
    storage.write_bytes("parquet/a.parquet", as_parquet())
    for key, data in IMAGES.items():
        storage.write_bytes(f"images/{key}.jpg", data)
    for folder, suffix in (("tars", ""), ("parquet", ""), ("images", ".jpg")):
        shards = find_shards(f"{root}/{folder}", samples_per_shard=8)
        found = [sample for shard in shards for sample in read_shard(shard)]
        assert [(sample.key, sample.image) for sample in found] == [(key + suffix, IMAGES[key]) for key in IMAGES]
        assert {sample.status for sample in found} == {"ok"}
    assert [sample.index for sample in read_shard(shards[1])] == list(range(8))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_missing_and_mistaken_files_are_shard_errors(root, kind):
    shard = Shard(name="x", url=f"{root}/x.{kind}", kind=kind)
    with pytest.raises(ShardError, match=rf"x\.{kind}: there is no such file"):
        list(read_shard(shard))
    Storage(url=root).write_bytes(f"x.{kind}", b"<html>404</html>" * 100)
    with pytest.raises(ShardError, match=rf"x\.{kind}: "):
        list(read_shard(shard))


def test_one_bad_file_of_a_folder_costs_only_its_own_row(root, monkeypatch):
    monkeypatch.setattr(samples, "MAX_SAMPLE_BYTES", 100)
    storage = Storage(url=root)
    for name, data in {"a.jpg": b"a", "b.jpg": b"b", "c.jpg": b"c" * 101, "d.jpg": b"d" * 100, "e.jpg": b""}.items():
        storage.write_bytes(name, data)
    (shard,) = find_shards(root)
    storage.delete("b.jpg")
    found = list(read_shard(shard))
    assert [sample.status for sample in found] == ["ok", "unreadable", "too_large", "ok", "ok"]
    assert [sample.image for sample in found] == [b"a", None, None, b"d" * 100, b""]
    assert "FileNotFoundError" in found[1].error


def test_file_names_that_are_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb") as file:
        file.write(b"x")
    (sample,) = read_shard(find_shards(str(tmp_path))[0])
    assert (sample.key, sample.image) == ("\\xff.jpg", b"x")


def test_errors_hide_secrets_and_survive_pickling():
    error = ShardError("https://user:pw@host/x.tar?sig=abc", "GET https://host/x.tar?sig=abc gave 403")
    for shown in (error, pickle.loads(pickle.dumps(error))):
        assert str(shown) == "https://host/x.tar: GET https://host/x.tar gave 403"


def test_the_list_of_statuses_is_closed():
    assert STATUSES == (
        "ok", "undecodable", "too_large", "too_small", "nonfinite", "no_image", "several_images",
        "duplicate_key", "truncated", "damaged", "unreadable",
    )  # fmt: skip
