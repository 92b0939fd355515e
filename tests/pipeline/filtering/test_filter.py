"""`diffseg filter` on runs in which every fifth label map is wrong on purpose."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from labelled_runs import write_png, write_run

import jobs.export
import jobs.filter
import jobs.report
import jobs.train
from diffseg.segmentation import BACKGROUND
from pipeline.filtering.worker import FoldWorker, ScoreWorker
from pipeline.networks.build import create_network
from pipeline.networks.files import save_network
from pipeline.output.ownership import clear_run
from pipeline.storage import SourceError, Storage
from pipeline.training.dataset import DatasetSettings, LabelDataset

KILLED_AT_RENAME = Path(__file__).parents[2] / "killed_at_rename.py"
DEADLINE = 300.0
"""Seconds for one command, far more than it needs."""
ROWS, WRONG_EVERY = 60, 5
SMALL = ("--size", "32", "--width", "8", "--steps", "24", "--folds", "2", "--keep", "0.8")


def write_boxes(folder: Path, *, generated: bool = False, rows: int = ROWS) -> None:
    """Write a run over light boxes on a dark background; the box of every fifth label map is moved.

    Args:
        folder: Receives OUT in `out` and the images in `images`.
        generated: Whether the run has names and holds its images itself, as runs of `diffseg generate` do.
        rows: Number of rows.
    """
    rng = np.random.default_rng(0)
    labels: dict[str, np.ndarray | None] = {}
    for number in range(rows):
        segments = np.zeros((32, 32), np.uint16)
        top, left = rng.integers(2, 14, size=2)
        segments[top : top + 16, left : left + 16] = 1
        image = np.where(segments[..., None] == 1, 210, 60) + rng.integers(-30, 30, size=(32, 32, 3))
        key = f"{number:03d}.png"
        write_png(folder / "images" / key, image.astype(np.uint8))
        labels[key] = np.roll(segments, (11, 7), (0, 1)) if number % WRONG_EVERY == 0 else segments
    if generated:
        images = {key: (folder / "images" / key).read_bytes() for key in labels}
        names = {key: [BACKGROUND, "box"] for key in labels}
        write_run(folder / "out", labels, per_shard=16, names=names, vocabulary=("box",), images=images)
    else:
        write_run(folder / "out", labels, source=folder / "images", per_shard=16)


def filtered(out: Path, *flags: str) -> int:
    return jobs.filter.main([str(out), "--no-ray", *SMALL, *flags])


def rows_in(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "filter" / "keep.parquet").to_pylist()


def files_in(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "filter").rglob("*") if path.is_file()}


def share_of_wrong_rows(rows: list[dict[str, Any]]) -> float:
    """Return the share of the dropped rows whose label map is wrong."""
    dropped = [row["key"] for row in rows if not row["keep"]]
    assert len(dropped) == ROWS // WRONG_EVERY
    return float(np.mean([int(key[:3]) % WRONG_EVERY == 0 for key in dropped]))


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with OUT of a filtered run without names, and its images. Read only."""
    folder = tmp_path_factory.mktemp("boxes")
    write_boxes(folder)
    assert filtered(folder / "out") == 0
    return folder


def test_most_rows_that_are_dropped_from_a_run_without_names_are_wrong(boxes: Path) -> None:
    rows = rows_in(boxes / "out")
    assert share_of_wrong_rows(rows) >= 0.8
    assert sorted(row["rank"] for row in rows) == list(range(1, ROWS + 1))
    assert all((row["class"], row["agree_iou"], row["n_segments"]) == (None, None, 2) for row in rows)
    assert sorted(files_in(boxes / "out")) == ["filter.json", "keep.parquet"]


def test_most_rows_that_are_dropped_from_a_generated_run_are_wrong(tmp_path: Path) -> None:
    write_boxes(tmp_path, generated=True)
    shutil.rmtree(tmp_path / "images")
    assert filtered(tmp_path / "out", "--steps", "20") == 0
    rows = rows_in(tmp_path / "out")
    assert share_of_wrong_rows(rows) >= 0.8
    assert all((row["class"], row["agree_iou"]) == ("box", 0.5) for row in rows)
    kept = LabelDataset(str(tmp_path / "out"), DatasetSettings(size=32, target="classes"), keep=True)
    assert sorted(sample["key"] for sample in kept) == sorted(row["key"] for row in rows if row["keep"])


def test_other_thresholds_use_the_scores_of_the_table(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(boxes / "out", tmp_path / "out")
    before, labels = rows_in(out), {path: path.read_bytes() for path in out.glob("labels/*")}
    monkeypatch.setattr("pipeline.filtering.filter.collect", None)  # no network is trained
    assert filtered(out, "--keep", "0.5", "--min-cv-iou", "0.9") == 0
    after = rows_in(out)
    assert [row["cv_iou"] for row in after] == [row["cv_iou"] for row in before]
    assert [row["keep"] for row in after] == [row["rank"] <= 30 and row["cv_iou"] >= np.float32(0.9) for row in before]
    assert {path: path.read_bytes() for path in out.glob("labels/*")} == labels
    assert filtered(out) == 0
    assert files_in(out) == files_in(boxes / "out")


def test_a_filter_that_is_killed_repeats_nothing_and_ends_with_the_same_bytes(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(boxes / "out", tmp_path / "out")
    shutil.rmtree(out / "filter")
    line = [sys.executable, str(KILLED_AT_RENAME), "*/scores/*.parquet", "3", "jobs.filter", str(out), "--no-ray"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    quiet = {"stderr": subprocess.DEVNULL, "timeout": DEADLINE, "check": False}
    killed = subprocess.run([*line, *SMALL], env=environment, **quiet)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(out.glob("filter/parts/*/scores/*.parquet"))) == 2
    done: list[str] = []
    score = ScoreWorker.collect
    monkeypatch.setattr(FoldWorker, "collect", None)
    monkeypatch.setattr(ScoreWorker, "collect", lambda worker, task: done.append(task.shard) or score(worker, task))
    assert filtered(out) == 0
    assert len(done) == len(list(out.glob("labels/*"))) - 2
    assert files_in(out) == files_in(boxes / "out")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_a_filter_on_ray_writes_the_same_bytes(boxes: Path, tmp_path: Path, local_ray: None) -> None:
    out = shutil.copytree(boxes / "out", tmp_path / "out")
    shutil.rmtree(out / "filter")
    assert jobs.filter.main([str(out), *SMALL]) == 0
    assert files_in(out) == files_in(boxes / "out")


def test_train_export_and_report_use_the_kept_rows(
    boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(boxes / "out", tmp_path / "out")
    kept = {row["key"] for row in rows_in(out) if row["keep"]}
    words = [str(out), str(tmp_path / "png"), "--to", "png", "--processes", "1", "--filter"]
    assert jobs.export.main(words) == 0
    assert {path.name for path in (tmp_path / "png").rglob("*.png")} == kept
    assert jobs.export.main(words[:-1]) == 2, "the same folder was used with and without the filter"
    capsys.readouterr()
    assert jobs.report.main([str(out), "--processes", "1", "--filter", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"ok": len(kept)}
    small = ("--size", "32", "--width", "8", "--steps", "1", "--batch-size", "2")
    assert jobs.train.main([str(out), str(tmp_path / "model"), "--no-ray", "--filter", *small]) == 0
    selection = json.loads((tmp_path / "model" / "train.json").read_text())["selection"]
    assert set(selection) == {"where", "keys", "split", "filter"}


def test_a_table_of_other_labels_is_refused(boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_boxes(tmp_path, rows=20)
    words = [str(tmp_path / "out"), str(tmp_path / "png"), "--to", "png", "--processes", "1", "--filter"]
    assert jobs.export.main(words) == 2
    assert "run `diffseg filter" in " ".join(capsys.readouterr().err.split())
    shutil.copytree(boxes / "out" / "filter", tmp_path / "out" / "filter")
    assert jobs.export.main(words) == 2
    assert "belongs to other labels" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SourceError, match="belongs to other labels"):
        LabelDataset(str(tmp_path / "out"), keep=True)
    clear_run(Storage(url=str(tmp_path / "out")))
    assert files_in(tmp_path / "out") == {}


def test_too_few_rows_for_a_batch_are_refused(boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shutil.copytree(boxes / "out", tmp_path / "out")
    assert filtered(out, "--batch-size", "50") == 2
    assert "fewer than one batch of 50" in " ".join(capsys.readouterr().err.split())


def test_an_image_that_cannot_be_read_is_named_and_not_kept(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(boxes, tmp_path / "boxes")
    shutil.rmtree(folder / "out" / "filter")

    def train_nothing(worker: FoldWorker, fold: int) -> str:
        model = worker.job.model(fold)
        network, about = create_network("unet", dimensions=16, width=8)
        save_network(model, network, about | {"target": "segments", "dimensions": 16, "size": 32, "class_names": []})
        return str(fold)

    monkeypatch.setattr(FoldWorker, "collect", train_nothing)
    write_png(folder / "images" / "007.png", np.zeros((40, 40, 3), np.uint8))
    assert filtered(folder / "out", "--images", str(folder / "images")) == 1
    assert "007.png: has 40 x 40 pixels now" in " ".join(capsys.readouterr().err.split())
    (row,) = [row for row in rows_in(folder / "out") if row["key"] == "007.png"]
    assert (row["cv_iou"], row["rank"], row["keep"]) == (None, ROWS, False)
