"""The recipes denseclip and maskclip: losses, learning rates, interrupted trainings, and names given when labelling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from labelled_runs import write_png, write_run
from small_clip import COLOURS, write_clip
from trainings import whole_and_continued

import jobs.label
import jobs.train
from diffseg.optim import set_lr
from diffseg.segmentation import BACKGROUND
from pipeline.training.recipes import create_recipe
from pipeline.training.recipes.losses import balanced_cross_entropy
from pipeline.training.settings import TrainSettings

NAMES = ("red", "blue")
CASES = [("denseclip", "clip"), ("maskclip", "tiny-text")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a read-only folder with a CLIP, images with a red and a blue half, and OUT with their classes."""
    folder = tmp_path_factory.mktemp("texts")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        write_clip(folder / "clip", width=16, layers=2)
    labels: dict[str, np.ndarray | None] = {}
    for number in range(6):
        segments = np.zeros((32, 32), np.uint16)
        segments[:, 4 * number + 4 :] = 1
        colours = np.array([COLOURS[name] for name in NAMES], np.uint8)
        write_png(folder / "images" / f"{number}.png", colours[segments])
        labels[f"{number}.png"] = segments
    write_run(folder / "out", labels, source=folder / "images", names=dict.fromkeys(labels, NAMES), vocabulary=NAMES)
    return folder


def settings_of(folder: Path, recipe: Any, text: str, **changes: Any) -> TrainSettings:
    location = text if text == "tiny-text" else str(folder / text)
    own = {"recipe": recipe, "text_model": location, "width": 8, "size": 32, "batch_size": 2}
    return TrainSettings(**{**own, "target": "classes", "steps": 3, **changes})


@pytest.mark.parametrize(("recipe", "text"), CASES)
def test_an_interrupted_training_ends_with_the_same_bytes(recipe: str, text: str, folder: Path, tmp_path: Path) -> None:
    models = whole_and_continued(folder / "out", settings_of(folder, recipe, text), tmp_path, interrupted_after=2)
    for name in ("model.safetensors", "config.json"):
        assert models[0].read_bytes(name) == models[1].read_bytes(name)


def test_the_loss_is_that_of_the_scores_and_four_tenths_of_that_of_the_score_map(folder: Path) -> None:
    torch.manual_seed(0)
    recipe = create_recipe(settings_of(folder, "denseclip", "clip"), (BACKGROUND, *NAMES))
    recipe.network.eval()  # without dropout
    batch = {
        "image": torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8),
        "mask": torch.randint(3, (2, 32, 32)).masked_fill(torch.rand(2, 32, 32) < 0.2, -100),
    }
    with torch.no_grad():
        found = recipe.losses(recipe.network, batch, step=0, seed=(0, 0, 0), device="cpu")
        maps = recipe.network(batch["image"] / 127.5 - 1, with_score_map=True)
        parts = [
            balanced_cross_entropy(F.interpolate(each, (32, 32), mode="bilinear"), batch["mask"], -100) for each in maps
        ]
    torch.testing.assert_close(found["loss"], parts[0] + 0.4 * parts[1])
    assert found.keys() == {"loss", "scores", "score_map"}


def test_the_clip_learns_at_a_tenth_of_the_rate_and_its_text_encoder_not_at_all(folder: Path) -> None:
    recipe = create_recipe(settings_of(folder, "denseclip", "clip"), (BACKGROUND, *NAMES))
    optimiser = recipe.optimiser()
    set_lr(optimiser, 0.5)
    rates = {id(weight): group["lr"] for group in optimiser.param_groups for weight in group["params"]}
    named = dict(recipe.network.named_parameters())
    assert rates.keys() == {id(weight) for weight in named.values()}
    assert {name.startswith("clip.") for name in named} == {True, False}
    assert all(rates[id(weight)] == (0.05 if name.startswith("clip.") else 0.5) for name, weight in named.items())


@pytest.mark.parametrize(("recipe", "text"), [("denseclip", "tiny-text"), ("maskclip", "clip")])
def test_a_trained_network_labels_with_the_names_of_the_training_and_with_others(
    recipe: str, text: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = text if text == "tiny-text" else str(folder / text)
    words = [str(folder / "out"), str(tmp_path / "model"), "--no-ray", "--target", "classes", "--size", "32"]
    words += ["--recipe", recipe, "--text-model", location, "--batch-size", "6", "--width", "8", "--steps", "12"]
    assert jobs.train.main([*words, "--learning-rate", "0.01"]) == 0
    history = json.loads((tmp_path / "model" / "metrics.json").read_text())["history"]
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    trained = found_names(folder, tmp_path, "trained")
    assert trained <= {(BACKGROUND, 0), ("red", 1), ("blue", 2)}
    assert {("red", 1), ("blue", 2)} <= trained
    other = found_names(folder, tmp_path, "other", "--names", "green,blue,red")
    assert other <= {(BACKGROUND, 0), ("green", 1), ("blue", 2), ("red", 3)}
    record = json.loads((tmp_path / "other" / "run.json").read_text())
    assert record["settings"]["naming"]["names"] == ["green", "blue", "red"]
    assert record["resolved"]["network"]["class_names"] == [BACKGROUND, "green", "blue", "red"]
    capsys.readouterr()
    words = [str(folder / "images"), str(tmp_path / "other"), "--no-ray", "--network", str(tmp_path / "model")]
    assert jobs.label.main(words) == 2, "the run has other names"
    assert jobs.label.main([*words, "--names", "red", "--labels-field", "labels"]) == 2
    assert "give --names alone" in " ".join(capsys.readouterr().err.split())


def found_names(folder: Path, tmp_path: Path, out: str, *flags: str) -> set[tuple[str, int]]:
    words = [str(folder / "images"), str(tmp_path / out), "--no-ray", "--device", "cpu"]
    assert jobs.label.main([*words, "--network", str(tmp_path / "model"), *flags]) == 0
    rows = [row for path in (tmp_path / out / "labels").iterdir() for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 6
    return {(segment["name"], segment["class_id"]) for row in rows for segment in row["segments"]}


def test_settings_that_do_not_fit_are_refused() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"recipe": "denseclip"}, "need a text model"),
        ({"text_model": "tiny-text"}, "the other recipes have none"),
        ({"recipe": "maskclip", "text_model": "tiny-text", "target": "segments"}, "add --target classes"),
        ({"recipe": "denseclip", "text_model": "tiny-text", "network": "segformer"}, "a network of its own"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            TrainSettings(**{"target": "classes", **settings})
    assert "text_model" not in TrainSettings().plain(), "which train.json of earlier versions lacks"
