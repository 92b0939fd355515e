"""Run lengths, file names, and the parts of an export that depend on all label shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from pipeline.exports.names import flat_name, is_plain_path, name_hash, repeated, unique_name
from pipeline.exports.plan import ShardSurvey, make_tasks
from pipeline.exports.rle import brush_bytes, coco_counts, cvat_counts
from pipeline.exports.voc import voc_palette

# pycocotools decodes through an interface that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))


def decoded_brush(data: list[int]) -> np.ndarray:
    """Decode bit by bit, as Label Studio does; return uint8 [N]."""
    bits, position = "".join(f"{byte:08b}" for byte in data), 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    size, value_bits = read(32), read(5) + 1
    length_bits = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < size:
        is_run, length = read(1), read(length_bits[read(2)]) + 1
        values += [read(value_bits)] * length if is_run else [read(value_bits) for _ in range(length)]
    assert len(values) == size
    return np.array(values, np.uint8)


def decoded_cvat(text: str, size: tuple[int, int]) -> np.ndarray:
    """Decode runs along the rows, the first of background; return bool [H, W]."""
    lengths = [int(word) for word in text.split(",")]
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(size)


@settings(deadline=None, max_examples=60)
@given(mask=MASKS)
def test_run_lengths_decode_to_the_same_pixels(mask: np.ndarray) -> None:
    rle = {"size": list(mask.shape), "counts": coco_counts(mask)}
    assert rle["counts"].encode() == coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    np.testing.assert_array_equal(coco_mask.decode(rle), mask)
    np.testing.assert_array_equal(decoded_cvat(cvat_counts(mask), mask.shape), mask)
    np.testing.assert_array_equal(decoded_brush(brush_bytes(mask)), np.repeat(mask.ravel() * 255, 4))


def test_long_runs_are_encoded() -> None:
    mask = np.zeros((300, 900), bool)
    mask[100:250] = True  # needs several of the longest runs of the brush format
    rle = {"size": list(mask.shape), "counts": coco_counts(mask)}
    np.testing.assert_array_equal(coco_mask.decode(rle), mask)
    np.testing.assert_array_equal(decoded_brush(brush_bytes(mask)), np.repeat(mask.ravel() * 255, 4))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("a.jpg", "a"),
        ("train2017/000139.jpg", "train2017--000139"),
        ("22.0/1.1", "22.0--1.1"),
        ("a_b-c", "a_b-c"),
    ],
)
def test_a_safe_key_is_its_own_file_name(key: str, name: str) -> None:
    assert flat_name(key) == name


HOSTILE = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    "",
    "a b.png",
    "é.png",
    "e\u0301.png",
    "a\nb",
    "-rf",
    ".hidden",
    "x" * 8000,
]


def test_hostile_keys_get_safe_and_distinct_names() -> None:
    names = [flat_name(key) for key in HOSTILE] + [unique_name(key, "shard", 3) for key in HOSTILE]
    assert len(set(names)) == len(names)
    for name in names:
        assert name.isascii()
        assert len(name) <= 150
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        assert name[0] not in ".-"
    assert [is_plain_path(key) for key in ("a/b c.png", "é", "../a", "/a", "a//b", "a\\b", "")] == [True] * 2 + [
        False
    ] * 5


def survey(shard: str, *keys: str) -> ShardSurvey:
    hashes = np.array([name_hash(key) for key in keys], np.uint64)
    return ShardSurvey(shard=shard, rows=np.arange(len(keys)), hashes=hashes, names=frozenset({"sky"} if keys else ()))


def test_colliding_names_are_found_and_images_numbered_over_shards() -> None:
    surveys = [survey("s0", "a", "b"), survey("s1"), survey("s2", "A.jpg", "c")]
    categories, tasks = make_tasks({"s0": 5, "s1": 2, "s2": 2}, surveys, {})
    assert categories == ("sky",)
    assert [task.first_id for task in tasks] == [1, 6, 8]
    assert [task.renamed for task in tasks] == [{0}, set(), {0}]
    assert make_tasks({"s1": 2}, surveys[1:2], {})[0] == ("segment",)
    assert repeated({}).size == 0


def test_the_palette_is_that_of_pascal_voc() -> None:
    palette = voc_palette()
    assert palette[[0, 1, 2, 3, 8, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [64, 0, 0],
        [224, 224, 192],
    ]
