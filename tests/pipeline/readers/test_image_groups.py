"""Groups of image files depend on the paths alone, so one added or removed file changes few of them."""

import random

import pytest

from pipeline.readers import image_groups
from pipeline.readers.image_groups import group_images
from pipeline.storage import SourceError
from pipeline.storage.backend import ListedFile


def files(*paths, version="1"):
    return [ListedFile(path, 10, version) for path in sorted(paths)]


def test_every_file_is_in_one_group_and_in_order():
    listed = files(*(f"{n % 7}/{n}.jpg" for n in range(1000)))
    shards = group_images("in", listed, 16)
    assert [path for shard in shards for path in shard.files] == [file.path for file in listed]
    assert 30 < len(shards) < 120
    assert len({shard.name for shard in shards}) == len(shards)
    assert {shard.kind for shard in shards} == {"images"}


def test_one_added_or_removed_file_changes_at_most_two_shards():
    rng = random.Random(1)
    paths = {f"{rng.randrange(10)}/{rng.random()}.jpg" for _ in range(300)}
    before = set(group_images("in", files(*paths), 8))
    for path in rng.sample(sorted(paths), 60):
        after = set(group_images("in", files(*(paths - {path})), 8))
        assert len(before - after) <= 2
        assert len(after - before) <= 1
        # The other direction is a file that is added.


def test_a_name_stands_for_the_paths_and_the_digest_for_their_versions_too():
    (shard,) = group_images("in", files("a.jpg", "b.jpg"), 10**9)
    (replaced,) = group_images("in", [ListedFile("a.jpg", 10, "1"), ListedFile("b.jpg", 11, "1")], 10**9)
    (touched,) = group_images("in", [ListedFile("a.jpg", 10, "1"), ListedFile("b.jpg", 10, "2")], 10**9)
    (other,) = group_images("in", files("a.jpg", "c.jpg"), 10**9)
    (moved,) = group_images("elsewhere", files("a.jpg", "b.jpg"), 10**9)
    assert shard.name == replaced.name == touched.name == moved.name != other.name
    assert len({shard.digest(), replaced.digest(), touched.digest(), other.digest()}) == 4
    assert moved.digest() == shard.digest()


def test_groups_of_one_file_each():
    assert [shard.files for shard in group_images("in", files("a.jpg", "b.jpg"), 1)] == [("a.jpg",), ("b.jpg",)]


def test_a_version_that_is_partly_unknown_is_unknown():
    (shard,) = group_images("in", [ListedFile("a.jpg", 10, "1"), ListedFile("b.jpg", 0, "")], 10**9)
    assert shard.version == ""


def test_paths_that_are_not_utf8_can_be_grouped():
    (shard,) = group_images("in", files("a\udcff.jpg"), 10**9)
    assert len(shard.digest()) == 16


def test_two_groups_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(image_groups, "NAME_DIGITS", 0)
    with pytest.raises(SourceError, match="--samples-per-shard"):
        group_images("in", files("a.jpg", "b.jpg"), 1)
