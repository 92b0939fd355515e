"""Safe file names for paths: recognisable, bounded in length, and different for different paths."""

import re

import pytest

from pipeline.readers.file_names import MAX_NAME_LENGTH, safe_file_name


def name_of(path: str, digest_digits: int = 8) -> str:
    return safe_file_name(path, fallback="shard", digest_digits=digest_digits)


@pytest.mark.parametrize(("path", "name"), [("a", "a"), ("a/b", "a--b"), ("_a/0.b-c", "_a--0.b-c")])
def test_safe_paths_need_no_digest(path, name):
    assert name_of(path) == name


@pytest.mark.parametrize(
    ("path", "readable"),
    [("a b/c", "a_b--c"), ("a--b", "a--b"), ("a-/b", "a---b"), ("-rf", "rf"), ("..", "shard"), ("é\udcff", "__")],
)
def test_other_paths_get_a_digest(path, readable):
    assert re.fullmatch(re.escape(readable) + "-[0-9a-f]{8}", name_of(path))
    assert re.fullmatch(re.escape(readable) + "-[0-9a-f]{16}", name_of(path, 16))


def test_long_paths_are_cut_and_stay_distinct():
    names = {name_of("x" * 200), name_of("x" * 199 + "y")}
    assert [len(name) for name in names] == [MAX_NAME_LENGTH] * 2
