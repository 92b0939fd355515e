"""Samples of a Parquet file: images as plain bytes and as Hugging Face structs, with columns of every type."""

import datetime
import decimal
import io
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.table import embed_table_storage
from PIL import Image

from pipeline.readers.parquet import read_parquet
from pipeline.readers.samples import ReadLimits, ShardError


def read(table, **settings):
    if isinstance(table, dict):
        table = pa.table(table)
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=7)
    file.seek(0)
    return list(read_parquet(file, "the.parquet", **settings))


def images(count):
    return pa.array([b"image %d" % number for number in range(count)], pa.binary())


def test_plain_bytes_over_several_row_groups():
    samples = read({"jpg": images(40), "n": list(range(40)), "key": [f"k/{number}.x" for number in range(40)]})
    assert [sample.index for sample in samples] == list(range(40))
    assert [sample.key for sample in samples] == [f"k/{number}.x" for number in range(40)]
    assert [sample.image for sample in samples] == [b"image %d" % number for number in range(40)]
    assert samples[17].meta == '{"n": 17}'
    assert {sample.status for sample in samples} == {"ok"}


@pytest.mark.parametrize(
    "kind", [pa.large_binary(), pa.binary(7), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())]
)
def test_every_binary_type(kind):
    array = pa.array([b"image 0", b"image 1"], pa.binary())
    table = pa.table({"picture": array.dictionary_encode() if pa.types.is_dictionary(kind) else array.cast(kind)})
    samples = read(table)
    assert [(sample.key, sample.image) for sample in samples] == [("00000000", b"image 0"), ("00000001", b"image 1")]


@pytest.fixture
def image_paths(tmp_path):
    paths = [tmp_path / f"photo{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(path)
    return paths


def hugging_face(paths) -> datasets.Dataset:
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    columns = {"image": [str(path) for path in paths], "label": [0, 1, 0]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_hugging_face_datasets(image_paths, tmp_path):
    # push_to_hub does the same before it writes Parquet files.
    embedded = hugging_face(image_paths).with_format("arrow").map(embed_table_storage, batched=True)
    embedded.to_parquet(str(tmp_path / "a.parquet"))
    with open(tmp_path / "a.parquet", "rb") as file:
        samples = list(read_parquet(file, "a.parquet"))
    assert [sample.key for sample in samples] == ["photo0.png", "photo1.png", "photo2.png"]
    assert [sample.image for sample in samples] == [path.read_bytes() for path in image_paths]
    assert samples[1].meta == '{"label": 1}'


def test_hugging_face_datasets_that_hold_only_paths(image_paths, tmp_path):
    hugging_face(image_paths).to_parquet(str(tmp_path / "a.parquet"))
    with open(tmp_path / "a.parquet", "rb") as file:
        samples = list(read_parquet(file, "a.parquet"))
    assert [(sample.key, sample.status) for sample in samples] == [(str(path), "no_image") for path in image_paths]
    assert "embed the images" in samples[0].error


def test_nulls_and_structs_without_bytes():
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": b"1", "path": None}, {"bytes": None, "path": "b.jpg"}, None, {"bytes": b"2", "path": "d.jpg"}]
    samples = read({"image": pa.array(rows, kind)})
    assert [(sample.key, sample.status) for sample in samples] == [
        ("00000000", "ok"), ("b.jpg", "no_image"), ("00000002", "no_image"), ("d.jpg", "ok"),
    ]  # fmt: skip
    assert "only the path 'b.jpg'" in samples[1].error
    assert "is null in row 2" in samples[2].error


def test_keys_of_any_type_and_repeated_keys():
    assert [sample.key for sample in read({"image": images(3), "id": [7, None, 9]})] == ["7", "00000001", "9"]
    binary = pa.array([b"a", b"\xff", b""], pa.binary())
    assert [sample.key for sample in read({"image": images(3), "id": binary})] == ["a", "\\xff", "00000002"]
    samples = read({"image": images(4), "file_name": ["../a", "b", "../a", "../a"], "url": ["u"] * 4})
    assert [(sample.key, sample.status) for sample in samples] == [(f"{row:08d}", "ok") for row in range(4)]
    assert samples[3].meta == '{"file_name": "../a", "url": "u"}'


def test_meta_of_every_type_is_json():
    row = {
        "time": pa.array([datetime.datetime(2024, 1, 2, 3, 4, 5)]),
        "nanoseconds": pa.array([1], pa.timestamp("ns")),
        "decimal": pa.array([decimal.Decimal("1.50")]),
        "nan": [float("nan")],
        "nested": [{"list": [1.0, float("inf")], "text": "é"}],
        "null": pa.array([None], pa.string()),
        "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        "other_image": pa.array([b"\x00"], pa.binary()),
        "masks": pa.array([[b"\x00"]], pa.list_(pa.binary())),
        "invalid": pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers()),
    }
    (sample,) = read({"image": images(1), **row})
    meta = json.loads(sample.meta, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert meta.pop("nanoseconds").startswith("1970-01-01")
    assert meta == {
        "time": "2024-01-02 03:04:05",
        "decimal": "1.50",
        "nan": None,
        "nested": {"list": [1.0, None], "text": "é"},
        "null": None,
        "map": [["a", 1]],
        "invalid": None,
    }


def test_the_choice_of_the_image_column():
    other = pa.array([b"other"], pa.binary())
    assert read({"mask": other, "image": images(1)})[0].image == b"image 0"
    assert read({"image": ["a/path.jpg"], "bytes": images(1)})[0].image == b"image 0"
    assert read({"a": other, "b": images(1)}, image_field="b")[0].image == b"image 0"
    for table, settings, message in [
        ({"a": other, "b": images(1)}, {}, r"several columns.*a \(binary\), b \(binary\).*--image-field"),
        ({"image": ["x.jpg"], "n": [1]}, {}, r"no column.*image \(string\), n \(int64\)"),
        ({"image": images(1)}, {"image_field": "img"}, r"no column 'img'; the columns are image"),
        ({"image": images(1), "n": [1]}, {"image_field": "n"}, r"'n' has type int64; it must be binary"),
    ]:
        with pytest.raises(ShardError, match=r"^the\.parquet: .*" + message):
            read(table, **settings)


def test_columns_with_the_same_name_are_ignored():
    table = pa.table([images(1), pa.array([1]), pa.array([2]), pa.array(["k"])], names=["image", "n", "n", "key"])
    (sample,) = read(table)
    assert (sample.key, sample.image, sample.meta) == ("k", b"image 0", "")


def test_images_and_meta_above_the_limits_are_not_read():
    limits = ReadLimits(max_sample_bytes=6, max_meta_bytes=20)
    first, second = read({"image": pa.array([b"123456", b"1234567"]), "text": ["é" * 50, "x"]}, limits=limits)
    assert (first.status, second.status) == ("ok", "too_large")
    assert "left out" in first.meta
    assert second.meta == '{"text": "x"}'


def test_a_file_that_is_not_parquet_is_a_shard_error():
    whole = io.BytesIO()
    pq.write_table(pa.table({"image": images(50)}), whole)
    for data in (b"", b"hello", whole.getvalue()[:-20], b"PAR1" + b"\xff" * 100 + b"PAR1"):
        with pytest.raises((ShardError, OSError)):
            list(read_parquet(io.BytesIO(data), "the.parquet"))


def test_an_empty_table():
    assert read(pa.table({"image": images(0)})) == []
