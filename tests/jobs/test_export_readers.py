"""The usual tables read the rows of a run and of an export as they are, and join them on the stem."""

from __future__ import annotations

import csv
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
from labelled_runs import write_png, write_run

import jobs.export
from pipeline.output.rows import decode_mask
from pipeline.readers.file_names import stem_of

KEYS = ("a/1.b.png", "a/é.png", "c.png")


def labels_of(key: str) -> np.ndarray:
    """Return a label map with as many segments as the key has characters, uint16 [4, 36]."""
    return np.repeat(np.arange(36, dtype=np.uint16)[None] * len(key) // 36, 4, axis=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return OUT of a run over a folder."""
    folder = tmp_path_factory.mktemp("readers")
    for key in KEYS:
        write_png(folder / "in" / key, np.zeros((4, 36, 3), np.uint8))
    write_run(folder / "out", {key: labels_of(key) for key in KEYS}, source=folder / "in")
    return folder / "out"


def test_duckdb_polars_and_pandas_read_the_rows_of_a_run(run: Path) -> None:
    rows = duckdb.sql(f"select key, n_segments, mask from '{run}/labels/*.parquet' order by key").fetchall()
    assert [(key, count) for key, count, _ in rows] == [(key, len(key)) for key in KEYS]
    frame = pl.read_parquet(f"{run}/labels/*.parquet").sort("key")
    assert frame["n_segments"].to_list() == [len(key) for key in KEYS]
    assert frame.explode("segments")["segments"].struct.field("area").sum() == 3 * 4 * 36
    table = pd.concat(pd.read_parquet(path) for path in sorted((run / "labels").iterdir())).sort_values("key")
    masks = [[mask for *_, mask in rows], frame["mask"].to_list(), table["mask"].tolist()]
    for found in masks:
        for key, png in zip(KEYS, found, strict=True):
            np.testing.assert_array_equal(decode_mask(png), labels_of(key))


def test_an_export_to_hugging_face_and_keys_csv_are_tables(run: Path, tmp_path: Path) -> None:
    words = [str(run), str(tmp_path / "hf"), "--to", "huggingface", "--processes", "1"]
    assert jobs.export.main(words) == 0
    stems = [stem_of(key) for key in KEYS]
    files = f"{tmp_path}/hf/data/*.parquet"
    assert [row[0] for row in duckdb.sql(f"select stem from '{files}' order by key").fetchall()] == stems
    assert pl.read_parquet(files).sort("key")["stem"].to_list() == stems
    assert jobs.export.main([str(run), str(tmp_path / "png"), "--to", "png", "--processes", "1"]) == 0
    path = tmp_path / "png/keys.csv"
    with open(path, encoding="utf-8", newline="") as file:
        expected = sorted(row["key"] for row in csv.DictReader(file))
    assert expected == sorted(KEYS)
    assert pl.read_csv(path).sort("key")["stem"].to_list() == stems
    assert pd.read_csv(path).sort_values("key")["stem"].tolist() == stems
    assert sorted(row[0] for row in duckdb.sql(f"select key from '{path}'").fetchall()) == expected
