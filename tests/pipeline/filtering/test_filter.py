"""`diffseg filter` on runs in which every fifth label map was made wrong on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from labelled_runs import write_png, write_run
from PIL import Image

import jobs.filter
import jobs.train
from diffseg.segmentation import BACKGROUND
from pipeline.filtering.worker import FoldWorker, ScoreWorker
from pipeline.output.manifest import require_manifest
from pipeline.storage import SourceError, Storage
from pipeline.training.dataset import DatasetSettings, LabelDataset

ROWS, WRONG_EVERY = 60, 5
SMALL = ("--size", "32", "--width", "8", "--steps", "30", "--folds", "2", "--keep", "0.8")


def write_boxes(folder: Path, **named: Any) -> None:
    """Write OUT and SRC of a run over light boxes on a dark background; the box of every fifth label map is moved."""
    rng = np.random.default_rng(0)
    labels: dict[str, np.ndarray | None] = {}
    for number in range(ROWS):
        segments = np.zeros((32, 32), np.uint16)
        top, left = rng.integers(2, 14, size=2)
        segments[top : top + 16, left : left + 16] = 1
        image = np.where(segments[..., None] == 1, 210, 60) + rng.integers(-30, 30, size=(32, 32, 3))
        key = f"{number:03d}.png"
        write_png(folder / "images" / key, image.astype(np.uint8))
        labels[key] = np.roll(segments, (11, 7), (0, 1)) if number % WRONG_EVERY == 0 else segments
    names = {key: [BACKGROUND, "box"] for key in labels} if named else {}
    write_run(folder / "out", labels, source=folder / "images", per_shard=16, names=names, **named)


def filtered(out: Path, *flags: str) -> int:
    return jobs.filter.main([str(out), "--no-ray", *SMALL, *flags])


def rows_in(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "filter" / "keep.parquet").to_pylist()


def share_of_wrong_rows(rows: list[dict[str, Any]]) -> float:
    """Return the share of the dropped rows whose label map is wrong."""
    dropped = [row["key"] for row in rows if not row["keep"]]
    assert len(dropped) == ROWS // WRONG_EVERY
    return float(np.mean([int(key[:3]) % WRONG_EVERY == 0 for key in dropped]))


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with OUT of a filtered run without names, and its images. Read only."""
    folder = tmp_path_factory.mktemp("segments")
    write_boxes(folder)
    assert filtered(folder / "out") == 0
    return folder


def test_most_rows_that_are_dropped_are_wrong_ones_without_names(segments: Path) -> None:
    rows = rows_in(segments / "out")
    assert share_of_wrong_rows(rows) >= 0.8
    assert {row["class"] for row in rows} == {None}
    assert sorted(row["rank"] for row in rows) == list(range(1, ROWS + 1))
    assert all(row["n_segments"] == 2 and row["confidence"] == 1 and row["agree_iou"] is None for row in rows)
    assert not (segments / "out" / "filter" / "parts").exists()
