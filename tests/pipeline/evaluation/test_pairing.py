"""Which truth belongs to which row, and what is said of those that stay alone."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.evaluation.ground_truth import Truth, TruthPlace
from pipeline.evaluation.pairing import Pairing, RowPlace, Rows, pair
from pipeline.storage import SourceError, Storage


def paired(rows: str, truths: str) -> Pairing:
    found = Rows(
        ok={RowPlace("s", number): key for number, key in enumerate(rows.split())}, failed=Counter(), shards_missing=0
    )
    places = {key: TruthPlace(name=key) for key in truths.split()}
    return pair(found, Truth(storage=Storage(url="."), layout_name="labels", field=None, ignore=None, places=places))


def test_whole_paths_tell_apart_what_has_the_same_name() -> None:
    pairing = paired("a/1.jpg b/1.jpg", "a/1.png b/1.png")
    assert pairing.rule == "path"
    assert list(pairing.pairs.values()) == ["a/1.png", "b/1.png"]


def test_names_are_compared_where_the_folders_differ() -> None:
    pairing = paired("val2017/1.jpg val2017/2.jpg 3", "masks/1.png masks/3.png")
    assert pairing.rule == "name"
    assert pairing.pairs == {RowPlace("s", 0): "masks/1.png", RowPlace("s", 2): "masks/3.png"}
    assert pairing.rows_alone == ["val2017/2.jpg"]


def test_what_stays_alone_is_named() -> None:
    pairing = paired("1 2 3", "2.png 4.png 5.png")
    assert (pairing.rows_alone, pairing.truths_alone) == (["1", "3"], ["4.png", "5.png"])


def test_what_could_mean_several_is_paired_with_none() -> None:
    pairing = paired("x/1.jpg x/2.jpg y/2.jpg x/3.jpg", "m/1.png m/2.png m/3.png n/3.png")
    assert pairing.pairs == {RowPlace("s", 0): "m/1.png"}
    assert pairing.repeated == ["x/2.jpg", "x/3.jpg", "y/2.jpg"]
    assert pairing.rows_alone == []


def test_keys_without_anything_in_common_are_shown() -> None:
    with pytest.raises(SourceError, match=r"none of 2 rows.*'a', 'b'; of truths, layout labels: 'c\.png'"):
        paired("a b", "c.png")
    with pytest.raises(SourceError, match=r"be unique; these are not: 'x/1', 'y/1'"):
        paired("x/1 y/1", "m/1.png")
