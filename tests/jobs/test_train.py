"""Tests of `diffseg train` on runs with given label maps: in this process, on Ray, and after a kill."""

from __future__ import annotations

import io
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
import torch
from labelled_runs import write_png, write_run
from PIL import Image

import jobs.evaluate
import jobs.train
from diffseg.segmentation import BACKGROUND
from diffseg.tiny.scenes.scenes import generate_scene
from jobs.common import INTERRUPTED
from pipeline.networks.files import load_network
from pipeline.networks.segmenter import NetworkSegmenter
from pipeline.storage import Storage
from pipeline.training.state import load_checkpoint, save_checkpoint

KILLED_AT_RENAME = Path(__file__).parents[1] / "killed_at_rename.py"
SMALL = ("--size", "32", "--width", "8", "--batch-size", "2", "--steps", "12")
DEADLINE = 300.0
"""Seconds for one command, far more than it needs, so that only a command that hangs exceeds it."""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a read-only folder with OUT of a run that labelled eight scenes perfectly, SRC and the ground truth."""
    folder = tmp_path_factory.mktemp("run")
    labels: dict[str, np.ndarray | None] = {}
    for seed in range(8):
        scene = generate_scene(seed, 48)
        write_png(folder / "images" / f"{seed}.png", scene.image)
        write_png(folder / "truth" / f"{seed}.png", scene.labels)
        labels[f"{seed}.png"] = scene.labels
    write_run(folder / "out", labels, source=folder / "images")
    return folder


def train(folder: Path, model: Path, *flags: str) -> int:
    return jobs.train.main([str(folder / "out"), str(model), *SMALL, *flags])


@pytest.fixture(scope="module")
def undisturbed(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return MODEL of a training that ran to its end without Ray; read-only."""
    model = tmp_path_factory.mktemp("model")
    assert train(run_folder, model, "--no-ray", "--predict", str(run_folder / "images")) == 0
    return model


def test_a_training_writes_a_network_metrics_and_curves(undisturbed: Path) -> None:
    metrics = json.loads((undisturbed / "metrics.json").read_text())
    assert [record["step"] for record in metrics["history"]] == list(range(1, 13))
    assert metrics["images"] == 24
    assert all(0 <= record[name] <= 1 for record in metrics["history"] for name in ("loss", "same", "other"))
    with Image.open(undisturbed / "curves.png") as picture:
        assert picture.size[0] > 100
    config = json.loads((undisturbed / "config.json").read_text())
    assert (config["dimensions"], config["class_names"]) == (16, [])


def test_without_matplotlib_a_training_ends_without_the_picture_and_says_how_to_get_it(
    run_folder: Path,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = shutil.copytree(undisturbed, tmp_path / "model")
    (model / "curves.png").unlink()
    monkeypatch.setattr("diffseg.drawing.plot.find_spec", lambda name: None)
    assert train(run_folder, model, "--no-ray") == 0
    assert not (model / "curves.png").exists()
    assert "pip install 'diffseg-pipeline[plots]'" in caplog.text
    assert "curves.png" not in capsys.readouterr().err.split("steps,")[-1]


def test_a_training_is_continued_with_the_same_rows_only(
    run_folder: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, message in (
        (("--where", "n_segments < 0"), "no row is left"),
        (("--where", "no_column > 0"), "no column no_column"),
        (("--val-share", "1"), "expected at least 0 and less than 1"),
    ):
        assert train(run_folder, tmp_path / "none", "--no-ray", *flags) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    model = shutil.copytree(undisturbed, tmp_path / "model")
    assert train(run_folder, model, "--no-ray", "--val-share", "0.2") == 2
    assert "selection was None" in " ".join(capsys.readouterr().err.split())


def test_predicted_labels_can_be_scored_like_a_run(
    run_folder: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(undisturbed / "labels"), str(run_folder / "truth"), "--baseline-images", "0", "--processes", "1"]
    assert jobs.evaluate.main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["methods"][0]["images"] == 8
    assert 0 < document["methods"][0]["figures"]["covering"]["mean"] <= 1


def test_a_finished_training_is_exported_to_onnx(run_folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = shutil.copytree(undisturbed, tmp_path / "model")
    assert train(run_folder, model, "--no-ray", "--export-onnx") == 0
    loaded = onnx.load(str(model / "model.onnx"))
    onnx.checker.check_model(loaded)
    assert [output.name for output in loaded.graph.output] == ["embedding"]
    assert (model / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()


def test_a_training_that_is_killed_ends_with_the_same_network(
    run_folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    words = [str(run_folder / "out"), str(tmp_path), *SMALL, "--no-ray", "--save-every", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    line = [sys.executable, str(KILLED_AT_RENAME), "*/checkpoint.safetensors", "3", "jobs.train", *words]
    killed = subprocess.run(line, env=environment, stderr=subprocess.DEVNULL, timeout=DEADLINE, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "checkpoint.safetensors").exists()
    assert not (tmp_path / "model.safetensors").exists()
    assert jobs.train.main(words) == 0
    assert (tmp_path / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    history = json.loads((tmp_path / "metrics.json").read_text())["history"]
    assert [record["step"] for record in history] == list(range(1, 13))


def test_a_training_in_a_store_stops_continues_and_labels_as_in_a_folder(
    run_folder: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(model: Storage, network: Any, optimiser: Any, step: int, history: Any) -> None:
        save_checkpoint(model, network, optimiser, step, history)
        if step == 4:
            raise KeyboardInterrupt

    starts: list[int] = []

    def load(*args: Any) -> tuple[int, Any]:
        step, history = load_checkpoint(*args)
        starts.append(step)
        return step, history

    url = f"memory://{tmp_path.name}/model"
    model, words = Storage(url=url), [str(run_folder / "out"), url, *SMALL, "--no-ray", "--save-every", "2"]
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.training.loop.save_checkpoint", stop)
        assert jobs.train.main(words) == INTERRUPTED
    assert not model.exists("model.safetensors")
    monkeypatch.setattr("pipeline.training.loop.load_checkpoint", load)
    assert jobs.train.main([*words, "--predict", str(run_folder / "images")]) == 0
    assert starts == [4]
    for name in ("model.safetensors", "config.json"):
        assert model.read_bytes(name) == (undisturbed / name).read_bytes()
    (shard,) = (undisturbed / "labels" / "labels").iterdir()
    assert pq.read_table(io.BytesIO(model.read_bytes(f"labels/labels/{shard.name}"))) == pq.read_table(shard)
    assert model.is_file("metrics.json")
    assert model.is_file("curves.png")


def test_a_folder_of_another_training_is_refused(
    run_folder: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(run_folder, undisturbed, "--no-ray", "--seed", "7") == 2
    assert "seed was 0, is now 7" in capsys.readouterr().err
    assert train(run_folder, undisturbed, "--no-ray", "--target", "classes") == 2
    assert "no names" in capsys.readouterr().err
    assert train(run_folder, undisturbed, "--storage-options", '{"key": "value"}') == 2
    assert "--no-ray" in capsys.readouterr().err


@pytest.mark.cluster  # tests/end_to_end/test_train_workers.py trains on Ray in every run of the suite
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_a_worker_on_ray_trains_the_same_network(
    run_folder: Path, undisturbed: Path, tmp_path: Path, local_ray: None
) -> None:
    assert train(run_folder, tmp_path / "one", "--workers", "1") == 0
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()


def test_classes_are_learned_from_a_run_with_names(run_folder: Path, tmp_path: Path) -> None:
    """Images are light boxes on a dark background, and the segment without a name is ignored."""
    rng = np.random.default_rng(0)
    labels: dict[str, np.ndarray | None] = {}
    names: dict[str, list[str | None]] = {}
    for number in range(8):
        segments = np.zeros((64, 64), np.uint16)
        top, left = rng.integers(4, 28, size=2)
        segments[top : top + 32, left : left + 32] = 1
        segments[:, -4:] = 2
        image = np.where((segments == 1)[..., None], np.uint8(220), np.uint8(40)).repeat(3, axis=2)
        write_png(tmp_path / "images" / f"{number}.png", image)
        labels[f"{number}.png"], names[f"{number}.png"] = segments, [BACKGROUND, "box", None]
    write_run(tmp_path / "out", labels, source=tmp_path / "images", names=names, vocabulary=("box",))
    words = [str(tmp_path / "out"), str(tmp_path / "model"), *SMALL[:-1], "40", "--no-ray", "--target", "classes"]
    assert jobs.train.main(words) == 0
    network, config = load_network(Storage(url=str(tmp_path / "model")))
    assert (config["dimensions"], config["class_names"]) == (2, ["background", "box"])
    trained = NetworkSegmenter.load(str(tmp_path / "model"))
    assert trained.class_names == ("background", "box")
    pixels = np.full((64, 64, 3), 40, np.uint8)
    pixels[10:42, 12:44] = 220
    (result,) = trained([pixels])
    assert result.labels.shape == (64, 64)
    assert result.labels[26, 28] != result.labels[58, 58]
    light = torch.full((1, 3, 64, 64), 40 / 127.5 - 1)
    light[:, :, 10:42, 12:44] = 220 / 127.5 - 1
    with torch.inference_mode():
        classes = network(light)[0].argmax(dim=0)
    assert (classes[8:18, 9:19] == 1).float().mean() > 0.9
    assert (classes[22:, 24:] == 0).float().mean() > 0.9
