"""`diffseg fit` on a run with the true labels of generated scenes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from labelled_runs import write_png, write_run

import jobs.fit
import jobs.label
from diffseg import IGNORE
from diffseg.affinity.pairs import UNKNOWN
from diffseg.affinity.state import layers_by_grid, read_state
from diffseg.model.checkpoint import load_checkpoint
from diffseg.model.files import fingerprint
from diffseg.model.layout import TINY
from diffseg.tiny.scenes.scenes import generate_scene
from pipeline.output.manifest import read_manifest, write_manifest
from pipeline.output.rows import encode_mask
from pipeline.storage import Storage
from pipeline.training.feature_worker import target_labels

KILLED_AT_RENAME = Path(__file__).parents[2] / "killed_at_rename.py"
IMAGES, SIDE = 10, 96


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of a run over ten scenes with their true labels, of which one failed; two rows per label shard. Read only."""
    folder = tmp_path_factory.mktemp("fit")
    labels: dict[str, np.ndarray | None] = {}
    for number in range(IMAGES):
        scene = generate_scene(number, SIDE)
        write_png(folder / "images" / f"{number}.png", scene.image)
        labels[f"{number}.png"] = None if number == 3 else scene.labels
    write_run(folder / "out", labels, source=folder / "images")
    store = Storage(url=str(folder / "out"))
    manifest = read_manifest(store)
    assert manifest is not None
    write_manifest(store, dataclasses.replace(manifest, resolved={"timestep": 300, "resolution": 128}))
    return folder / "out"


def fitted(kind: str, out: Path, state: Path, *flags: str, code: int = 0) -> Mapping[str, Any]:
    """Run the command in this process and return its report."""
    assert jobs.fit.main([kind, str(out), str(state), "--no-ray", *flags]) == code
    return json.loads(Path(f"{state}.json").read_text())


@pytest.mark.parametrize("kind", ["heads", "features"])
def test_the_affinity_predicts_held_out_images(kind: str, out: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("diffseg.affinity.features.STEPS", 30)
    path = tmp_path / "state.safetensors"
    report = fitted(kind, out, path)
    assert (report["images"], report["held_out"], report["problems"]) == (8, 1, [])
    assert report["auc"] > 0.6
    state = read_state(path.read_bytes(), str(path))
    assert (state.kind, state.timestep, state.resolution) == (kind, 300, 128)
    assert state.model_sha256 == fingerprint(TINY)
    layers = layers_by_grid(load_checkpoint("tiny").unet, 128)
    assert state.layers == {grid: layers[grid] for grid in state.layout}
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "state.safetensors",
        "state.safetensors.json",
    ]


def test_a_killed_command_continues_to_the_same_state(out: Path, tmp_path: Path) -> None:
    expected = tmp_path / "uninterrupted.safetensors"
    fitted("heads", out, expected)
    state = tmp_path / "killed" / "state.safetensors"
    parts = Path(f"{state}.parts")
    line = [sys.executable, str(KILLED_AT_RENAME), "*.parts/*.safetensors", "3"]
    line += ["jobs.fit", "heads", str(out), str(state), "--no-ray"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    assert subprocess.run(line, env=environment, timeout=300, check=False).returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("*.safetensors")}
    assert len(kept) == 2
    assert not state.exists()
    began = time.time_ns()
    assert all(changed < began for changed in kept.values())
    report = fitted("heads", out, state)
    assert state.read_bytes() == expected.read_bytes()
    assert report == json.loads(Path(f"{expected}.json").read_text())
    before = state.stat().st_mtime_ns
    fitted("heads", out, state)
    assert state.stat().st_mtime_ns == before, "a finished fit is repeated"


@pytest.mark.parametrize(
    ("kind", "method"), [("heads", "affinity,diffseg"), ("features", "diffseg,walk")], ids=["heads", "features"]
)
def test_a_run_uses_and_records_the_affinity(
    kind: str, method: str, out: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diffseg.affinity.features.STEPS", 30)
    state = tmp_path / "state.safetensors"
    fitted(kind, out, state, "--images", "4")
    images = str(out.parent / "images" / "0.png")

    def label(folder: str, *flags: str) -> int:
        return jobs.label.main([images, str(tmp_path / folder), "--no-ray", "--resolution", "128", *flags])

    assert label("with", "--method", method, "--affinity", str(state)) == 0
    assert label("without", "--method", method.removeprefix("affinity,")) == 0
    rows = [pq.read_table(next((tmp_path / folder / "labels").iterdir())).to_pylist() for folder in ("with", "without")]
    assert rows[0][0]["status"] == "ok"
    assert rows[0][0]["mask"] != rows[1][0]["mask"]
    record = json.loads((tmp_path / "with" / "run.json").read_text())
    assert record["resolved"]["affinity"] == read_state(state.read_bytes(), "").sha256
    moved = state.rename(tmp_path / "moved.safetensors")
    assert label("with", "--method", method, "--affinity", str(moved)) == 0, "the same file elsewhere is the same run"
    other = tmp_path / "other.safetensors"
    fitted(kind, out, other, "--images", "6")
    capsys.readouterr()
    assert label("with", "--method", method, "--affinity", str(other)) == 2
    assert "resolved affinity" in capsys.readouterr().err
    assert label("new", "--method", method, "--affinity", str(state)) == 2
    assert "there is no such file" in capsys.readouterr().err.replace("\n", " ")
    assert label("new", "--method", "ncut", "--affinity", str(moved)) == 2
    assert f"an affinity of {kind}, for stage" in capsys.readouterr().err.replace("\n", " ")
    for other_pass in (("--timestep", "200"), ("--resolution", "256")):
        assert label("new", "--method", method, "--affinity", str(moved), *other_pass) == 2
        assert "run with --timestep 300 --resolution 128" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "new").exists(), "a state that does not fit is refused before anything is written"


@pytest.mark.usefixtures("local_ray")
def test_ray_actors_fit_the_same_state(out: Path, tmp_path: Path) -> None:
    local, remote = tmp_path / "local.safetensors", tmp_path / "remote.safetensors"
    fitted("heads", out, local)
    assert jobs.fit.main(["heads", str(out), str(remote), "--workers", "2"]) == 0
    assert local.read_bytes() == remote.read_bytes()


def test_unreadable_images_are_reported(out: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    for number in range(IMAGES):
        if number not in (4, 5):
            write_png(images / f"{number}.png", generate_scene(number, SIDE).image)
    (images / "4.png").write_bytes(b"no image")
    write_png(images / "5.png", generate_scene(5, SIDE).image)
    report = fitted("heads", out, tmp_path / "state.safetensors", "--source", str(images), code=1)
    assert report["images"] + report["held_out"] == 8
    assert len(report["problems"]) == 1
    assert "4.png" in report["problems"][0]


def test_invalid_arguments_are_refused(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = str(tmp_path / "state.safetensors")
    for words, message in (
        (["heads", str(tmp_path), state], "no run.json here"),
        (["heads", str(out), state, "--images", "1"], "expected at least 2 images"),
        (["heads", str(out), state, "--source", str(tmp_path)], "tmp"),
    ):
        assert jobs.fit.main([*words, "--no-ray"]) == 2
        assert message in capsys.readouterr().err.replace("\n", "") or message == "tmp"
    assert not Path(state).exists()


def test_target_labels_are_segments_or_classes() -> None:
    mask = np.array([[0, 1], [2, IGNORE]], np.uint16)
    segments = [{"id": k, "confidence": confidence} for k, confidence in enumerate((0.9, 0.2, 0.5))]
    row = {"mask": encode_mask(mask), "segments": segments}
    assert target_labels(row, 0.5).tolist() == [[1, UNKNOWN], [3, UNKNOWN]]
    named = [{**segment, "class_id": name} for segment, name in zip(segments, (0, 4, -1), strict=True)]
    assert target_labels({**row, "segments": named}, 0.0).tolist() == [[0, 4], [UNKNOWN, UNKNOWN]]
