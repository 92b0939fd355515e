"""Pairing of rows with ground truth, and the report of rows and ground truth without a partner."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.evaluation.ground_truth import GroundTruth, GroundTruthLocation
from pipeline.evaluation.pairing import Pairing, RowLocation, RunRows, pair_rows
from pipeline.storage import SourceError, Storage


def paired(row_keys: str, ground_truth_keys: str) -> Pairing:
    keys = {RowLocation("s", number): key for number, key in enumerate(row_keys.split())}
    rows = RunRows(ok=keys, failed=Counter(), shards_missing=0)
    locations = {key: GroundTruthLocation(name=key) for key in ground_truth_keys.split()}
    ground_truth = GroundTruth(
        storage=Storage(url="."), layout_name="labels", field=None, ignore=None, locations=locations
    )
    return pair_rows(rows, ground_truth)


def test_whole_paths_distinguish_equal_file_names() -> None:
    pairing = paired("a/1.jpg b/1.jpg", "a/1.png b/1.png")
    assert pairing.rule == "path"
    assert list(pairing.pairs.values()) == ["a/1.png", "b/1.png"]


def test_file_names_are_compared_if_the_folders_differ() -> None:
    pairing = paired("val2017/1.jpg val2017/2.jpg 3", "masks/1.png masks/3.png")
    assert pairing.rule == "name"
    assert pairing.pairs == {RowLocation("s", 0): "masks/1.png", RowLocation("s", 2): "masks/3.png"}
    assert pairing.unpaired_rows == ["val2017/2.jpg"]


def test_rows_and_ground_truth_without_a_partner_are_listed() -> None:
    pairing = paired("1 2 3", "2.png 4.png 5.png")
    assert (pairing.unpaired_rows, pairing.unpaired_ground_truth) == (["1", "3"], ["4.png", "5.png"])


def test_ambiguous_keys_stay_unpaired() -> None:
    pairing = paired("x/1.jpg x/2.jpg y/2.jpg x/3.jpg", "m/1.png m/2.png m/3.png n/3.png")
    assert pairing.pairs == {RowLocation("s", 0): "m/1.png"}
    assert pairing.ambiguous_keys == ["x/2.jpg", "x/3.jpg", "y/2.jpg"]
    assert pairing.unpaired_rows == []


def test_keys_of_both_sides_are_shown_if_none_match() -> None:
    with pytest.raises(SourceError, match=r"none of 2 rows.*'a', 'b'; ground-truth keys, layout labels: 'c\.png'"):
        paired("a b", "c.png")
    with pytest.raises(SourceError, match=r"and unique; these are not: 'x/1', 'y/1'"):
        paired("x/1 y/1", "m/1.png")
