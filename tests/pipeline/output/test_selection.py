"""Rows are selected by an expression over their columns, by keys or stems, and by a split that is stable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.output.rows import SCHEMA
from pipeline.output.selection import COLUMNS, RowSelection, read_keys, split_of
from pipeline.readers.file_names import stem_of
from pipeline.storage import SourceError, Storage

ROW: dict[str, Any] = {
    "key": "train/a.b.JPG",
    "status": "ok",
    "confidence": 0.6,
    "width": 640,
    "height": 480,
    "n_segments": 3,
    "segments": [{"name": "road"}, {"name": None}, {"name": "sky"}],
}
FAILED: dict[str, Any] = ROW | {"status": "undecodable", "confidence": None, "width": None, "segments": None}


@pytest.mark.parametrize(
    ("where", "ok", "failed"),
    [
        ("confidence >= 0.5", True, False),
        ("0.5 <= confidence < 0.6 or n_segments in (3, 4)", True, True),
        ("not confidence > 0.5", False, True),
        ("confidence == None", False, True),
        ("confidence and width", True, False),
        ("confidence != None and width / height > 1.3", True, False),
        ("width * height < 1000 or -n_segments + 3 == 0", True, True),
        ("'train/' in key and stem == 'train/a_b'", True, True),
        ("'road' in names and 'sea' not in names", True, False),
        ("split < 1 and split >= 0", True, True),
    ],
)
def test_an_expression_selects_rows_and_missing_values_fulfil_no_comparison(where: str, ok: bool, failed: bool) -> None:
    selection = RowSelection(where=where)
    assert [selection.accepts(row) for row in (ROW, FAILED)] == [ok, failed]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("confidenc > 0.5", "no column confidenc; expected comparisons of key, shard"),
        ("confidence >", "is not a Python expression"),
        ("__import__('os').system('true')", "is not allowed"),
        ("key.__class__ == 1", "Attribute is not allowed"),
        ("[k for k in key]", "ListComp is not allowed"),
        ("n_segments ** 9 > 1", "Pow is not allowed"),
    ],
)
def test_other_expressions_are_refused(where: str, message: str) -> None:
    with pytest.raises(ValueError, match="--where") as error:
        RowSelection(where=where)
    assert message in str(error.value)


def test_a_comparison_of_text_and_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="'key > 3' cannot be evaluated"):
        RowSelection(where="key > 3").accepts(ROW)


def test_all_columns_but_the_labels_themselves_can_be_used() -> None:
    assert {*COLUMNS, "mask", "segments"} == set(SCHEMA.names)


def test_only_the_columns_that_are_needed_are_read() -> None:
    assert RowSelection().columns == set()
    assert RowSelection(where="'road' in names and width > 3").columns == {"segments", "width"}
    assert RowSelection(keys=frozenset({"a"})).columns == RowSelection(split=(0.0, 0.5)).columns == {"key"}


@pytest.mark.parametrize(("listed", "accepted"), [("train/a.b.JPG", True), ("train/a_b", True), ("a.b.JPG", False)])
def test_keys_and_stems_select_rows(listed: str, accepted: bool) -> None:
    assert RowSelection(keys=frozenset({listed})).accepts(ROW) is accepted


def test_a_file_of_keys_is_read_as_utf8_lines(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_bytes("\ufeffé &,.png\r\n a\n\n".encode())
    storage = Storage(url=".")
    assert read_keys(storage, str(tmp_path / "keys.txt")) == {"é &,.png", " a"}
    for name, data, message in (("no.txt", None, "no such file"), ("e", b"\n", "empty"), ("l", b"\xff", "not UTF-8")):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(SourceError, match=message):
            read_keys(storage, str(tmp_path / name))


def test_the_split_depends_on_the_stem_alone_and_is_uniform() -> None:
    assert split_of("a/b.c.jpg") == split_of("a/b_c") == pytest.approx(0.6348, abs=1e-4)
    shares = [sum(split_of(f"{i}.jpg") < share for i in range(4000)) / 4000 for share in (0.1, 0.5)]
    assert shares == pytest.approx([0.1, 0.5], abs=0.025)
    row = {"key": "a/b.c.jpg"}
    parts = [RowSelection(split=bounds).accepts(row) for bounds in ((0.0, 0.5), (0.5, 1.0))]
    assert parts == [False, True]


@pytest.mark.parametrize(
    ("key", "stem"), [("a.jpg", "a"), ("22.0/1.1.png", "22.0/1_1"), ("v1.0/x", "v1.0/x"), (".jpg", "_jpg"), ("é", "é")]
)
def test_the_stem_of_a_key(key: str, stem: str) -> None:
    assert stem_of(key) == stem
