"""Other libraries read the same rows from the labels of a run, and the masks are as the rows describe them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pytest
from PIL import Image
from runs import label, rows_of
from webdataset import tariterators

from diffseg.tiny.scenes.scenes import generate_scene

Rows = list[dict[str, Any]]


def by_arrow(out: Path) -> Rows:
    return pyarrow.dataset.dataset(out / "labels").to_table().to_pylist()


def by_datasets(out: Path, cache: Path) -> Rows:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    files = sorted(str(path) for path in (out / "labels").glob("*.parquet"))
    return datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache)).to_list()


def by_duckdb(out: Path) -> Rows:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        result = connection.execute(f"SELECT * FROM '{out}/labels/*.parquet' ORDER BY shard, index")
        names = [column[0] for column in result.description]
        rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    # DuckDB returns fixed-size arrays as tuples.
    return [row | {"segments": [s | {"bbox": list(s["bbox"])} for s in row["segments"]]} for row in rows]


def by_webdataset(out: Path) -> Rows:
    rows = []
    for path in sorted((out / "webdataset").glob("*.tar")):
        with path.open("rb") as file:
            members = tariterators.tar_file_expander([{"url": str(path), "stream": file}])
            rows += [json.loads(s["json"]) | {"mask": s["png"]} for s in tariterators.group_by_keys(members)]
    return rows


@pytest.mark.parametrize("read", [by_arrow, by_datasets, by_duckdb, by_webdataset])
def test_every_reader_gives_the_same_rows(read: Callable[..., Rows], labelled: Path, tmp_path: Path) -> None:
    rows = read(labelled, tmp_path) if read is by_datasets else read(labelled)
    expected = rows_of(labelled)
    assert [row["key"] for row in rows] == [row["key"] for row in expected]
    assert len(rows) == 20
    for row, wanted in zip(rows, expected, strict=True):
        assert row == wanted


def test_masks_are_as_their_rows_describe_them(labelled: Path) -> None:
    """Pillow reads the masks, and each pixel is counted."""
    for row in rows_of(labelled):
        with Image.open(io.BytesIO(row["mask"])) as image:
            assert (image.format, image.mode) == ("PNG", "L")
            mask = np.asarray(image)
        assert mask.shape == (row["height"], row["width"]) == (96, 96)
        assert_described(mask, row)
        assert sum(segment["area"] for segment in row["segments"]) == 96 * 96
        assert json.loads(row["meta"])["json"]["path"].rpartition(".")[0] == row["key"]


def assert_described(mask: np.ndarray, row: dict[str, Any]) -> None:
    """Compare the segments of a row with brute force over its mask, where 255 is outside of all segments."""
    ids = sorted(set(mask.ravel().tolist()) - {255})
    assert ids == list(range(row["n_segments"])) == [segment["id"] for segment in row["segments"]]
    for segment in row["segments"]:
        points = [(x, y) for y, line in enumerate(mask.tolist()) for x, v in enumerate(line) if v == segment["id"]]
        columns, lines = [x for x, _ in points], [y for _, y in points]
        width, height = max(columns) - min(columns) + 1, max(lines) - min(lines) + 1
        assert segment["area"] == len(points)
        assert segment["bbox"] == [min(columns), min(lines), width, height]
        assert 0 <= segment["confidence"] <= 1
    weighted = sum(segment["confidence"] * segment["area"] for segment in row["segments"])
    assert row["confidence"] == pytest.approx(weighted / sum(s["area"] for s in row["segments"]), abs=1e-5)


def test_pixels_outside_of_a_centre_crop_are_ignored(tmp_path: Path) -> None:
    """The preset google on images that are not square, one of which is upright only by its EXIF orientation."""
    images = tmp_path / "images"
    images.mkdir()
    scene = Image.fromarray(generate_scene(0, 120).image)
    exif = Image.Exif()
    exif[0x0112] = 6
    scene.crop((0, 0, 120, 80)).save(images / "lying.png")
    scene.crop((0, 0, 71, 120)).save(images / "standing.png")
    scene.crop((0, 0, 120, 80)).save(images / "turned.jpg", exif=exif)
    assert label(images, tmp_path / "out", "--no-ray", "--preset", "google") == 0
    crops = {"lying.png": (80, 120, 80), "standing.png": (120, 71, 71), "turned.jpg": (120, 80, 80)}
    rows = rows_of(tmp_path / "out")
    assert [row["key"] for row in rows] == list(crops)
    for row in rows:
        height, width, side = crops[row["key"]]
        with Image.open(io.BytesIO(row["mask"])) as image:
            mask = np.asarray(image)
        assert mask.shape == (row["height"], row["width"]) == (height, width)
        top, left = (height - side) // 2, (width - side) // 2
        inside = np.zeros_like(mask, dtype=bool)
        inside[top : top + side, left : left + side] = True
        assert np.array_equal(mask == 255, ~inside)
        assert row["n_segments"] > 1
        assert_described(mask, row)
