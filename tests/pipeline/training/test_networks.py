"""Training of the networks of transformers: from a run to a labelled folder, and after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from labelled_runs import write_png, write_run
from trainings import SEGFORMER, VIT, whole_and_continued

import jobs.train
from diffseg.segmentation import BACKGROUND
from pipeline.storage import Storage
from pipeline.training.settings import TrainSettings
from pipeline.training.state import CHECKPOINT, claim

BACKBONES = {"segformer": SEGFORMER, "dinov2-linear": VIT}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a read-only folder with images of a light half, OUT with their classes, and configurations."""
    folder = tmp_path_factory.mktemp("networks")
    labels: dict[str, np.ndarray | None] = {}
    for number in range(6):
        segments = np.zeros((32, 32), np.uint16)
        segments[:, 4 * number + 4 :] = 1
        image = np.repeat((40 + 180 * segments)[..., None], 3, axis=2).astype(np.uint8)
        write_png(folder / "images" / f"{number}.png", image)
        labels[f"{number}.png"] = segments
    names = dict.fromkeys(labels, (BACKGROUND, "box"))
    write_run(folder / "out", labels, source=folder / "images", names=names, vocabulary=("box",))
    for name, config in BACKBONES.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    return folder


def settings_of(folder: Path, network: Any, **changes: Any) -> TrainSettings:
    own = {"network": network, "backbone": str(folder / f"{network}.json"), "size": 32, "batch_size": 2}
    return TrainSettings(**{**own, "target": "classes", "steps": 4, **changes})


@pytest.mark.parametrize("network", BACKBONES)
def test_an_interrupted_training_ends_with_the_same_bytes(network: str, folder: Path, tmp_path: Path) -> None:
    models = whole_and_continued(folder / "out", settings_of(folder, network), tmp_path, interrupted_after=3)
    for name in ("model.safetensors", "config.json"):
        assert models[0].read_bytes(name) == models[1].read_bytes(name)
    assert models[1].exists(CHECKPOINT)


@pytest.mark.parametrize("network", BACKBONES)
def test_a_network_of_transformers_is_trained_and_labels_like_any_other(
    network: str, folder: Path, tmp_path: Path
) -> None:
    words = [str(folder / "out"), str(tmp_path / "model"), "--no-ray", "--target", "classes", "--size", "32"]
    words += ["--network", network, "--backbone", str(folder / f"{network}.json"), "--batch-size", "6"]
    words += ["--steps", "25", "--learning-rate", "0.01", "--predict", str(folder / "images")]
    assert jobs.train.main(words) == 0
    history = json.loads((tmp_path / "model" / "metrics.json").read_text())["history"]
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    shards = (tmp_path / "model" / "labels" / "labels").iterdir()
    rows = [row for path in shards for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 6
    assert {(segment["name"], segment["class_id"]) for row in rows for segment in row["segments"]} <= {
        (BACKGROUND, 0),
        ("box", 1),
    }


def test_settings_of_another_network_are_refused_and_old_trainings_continue(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="backbone b: unet has none"):
        TrainSettings(backbone="b")
    with pytest.raises(ValueError, match="width 32: is of the network unet"):
        TrainSettings(network="segformer", width=32)
    assert not {"network", "backbone"} & TrainSettings().plain().keys(), "which train.json of earlier versions lacks"
    model = Storage(url=str(tmp_path))
    claim(model, TrainSettings(network="segformer"), fingerprint="a", workers=1)
    with pytest.raises(ValueError, match="network was segformer, is now dinov2-linear"):
        claim(model, TrainSettings(network="dinov2-linear"), fingerprint="a", workers=1)
