"""`diffseg label --network` and `diffseg train --predict`: a trained network labels with the records of any run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from labelled_runs import write_png
from PIL import Image
from torch import nn

import jobs.evaluate
import jobs.export
import jobs.fit
import jobs.label
import jobs.train
from pipeline.networks.files import load_network, save_network
from pipeline.networks.segmenter import NetworkSegmenter
from pipeline.networks.unet import SegmentationNetwork
from pipeline.output.rows import decode_mask
from pipeline.storage import Storage

NAMES = ("sky", "road", "sea")
CLASSES = {"background": 0, "sky": 1, "road": 2, "sea": 3}
SIDE = 64


class Oracle(nn.Module):
    """Scores of four classes, which a pixel shows by its grey level: 0, 80, 160 and 240."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grey = (images[:, :1] + 1) * 127.5
        return -(grey - torch.tensor([0.0, 80, 160, 240]).view(1, 4, 1, 1)).abs()


def class_map(number: int) -> np.ndarray:
    """Return the classes of an image, uint8 [64, 64]: no image has all four, and only two start with class 0."""
    classes = np.full((SIDE, SIDE), number % 4, np.uint8)
    classes[:, 32:] = (number + 1) % 4
    classes[40:, 8:24] = (number + 2) % 4
    return classes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with images, their class maps in `truth`, and MODEL, whose network knows all classes."""
    for number in range(4):
        grey = np.repeat(80 * class_map(number)[..., None], 3, axis=2)
        write_png(tmp_path / "images" / f"{number}.png", grey)
        write_png(tmp_path / "truth" / f"{number}.png", class_map(number))
    config = {"target": "classes", "width": 8, "dimensions": 4, "size": SIDE, "class_names": ["background", *NAMES]}
    save_network(Storage(url=str(tmp_path / "model")), SegmentationNetwork(width=8, dimensions=4), config)
    monkeypatch.setattr(
        "pipeline.networks.files.load_network", lambda model, names=(): (Oracle(), load_network(model)[1])
    )
    return tmp_path


def label(folder: Path, out: str, *flags: str) -> int:
    words = [str(folder / "images"), str(folder / out), "--no-ray", "--device", "cpu"]
    return jobs.label.main([*words, "--network", str(folder / "model"), *flags])


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "labels").iterdir()) for row in pq.read_table(path).to_pylist()]


def test_an_oracle_network_writes_the_names_and_ids_of_its_classes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(folder, "out") == 0
    rows = rows_of(folder / "out")
    assert len(rows) == 4
    for number, row in enumerate(rows):
        table = np.array([segment["class_id"] for segment in row["segments"]])
        np.testing.assert_array_equal(table[decode_mask(row["mask"])], class_map(number))
        assert all(CLASSES[segment["name"]] == segment["class_id"] for segment in row["segments"])
        assert all(0.99 < segment["name_score"] <= 1 for segment in row["segments"])
    capsys.readouterr()
    words = [str(folder / "out"), str(folder / "truth"), "--classes", json.dumps(CLASSES), "--baseline-images", "0"]
    assert jobs.evaluate.main([*words, "--processes", "1", "--json"]) == 0
    named = json.loads(capsys.readouterr().out)["named"]
    assert (named["accuracy"]["mean"], named["miou"]["mean"]) == (1, 1)
    assert jobs.export.main([str(folder / "out"), str(folder / "dest"), "--to", "mmseg", "--processes", "1"]) == 0
    for number in range(4):
        with Image.open(folder / "dest" / "ann_dir" / "train" / f"{number}.png") as exported:
            np.testing.assert_array_equal(np.asarray(exported), class_map(number))


def test_a_run_of_a_network_is_resumed_wherever_it_lies_and_refuses_another(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(folder, "out", "--samples-per-shard", "2") == 0
    record = json.loads((folder / "out" / "run.json").read_text())
    assert record["settings"]["naming"]["names"] == list(NAMES)
    assert record["resolved"]["network"]["class_names"] == ["background", *NAMES]
    rows = rows_of(folder / "out")
    removed = next(iter((folder / "out" / "commits").rglob("*.json")))
    removed.unlink()
    (folder / "model").rename(folder / "moved")
    words = [str(folder / "images"), str(folder / "out"), "--no-ray", "--samples-per-shard", "2", "--network"]
    assert jobs.label.main([*words, str(folder / "moved")]) == 0
    assert rows_of(folder / "out") == rows
    config = json.loads((folder / "moved" / "config.json").read_text())
    save_network(Storage(url=str(folder / "other")), SegmentationNetwork(width=8, dimensions=4), config)
    capsys.readouterr()
    assert jobs.label.main([*words, str(folder / "other")]) == 2
    assert "model_sha256" in " ".join(capsys.readouterr().err.split())
    assert jobs.label.main([*words[:-1]]) == 2, "the run is not one of Stable Diffusion"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--names", "sky"), "names its segments by the classes"),
        (("--min-area", "0.1", "--flip"), "min_area, flip would have no effect"),
        (("--preset", "paper"), "would have no effect"),
        (("--model", "tiny-text"), "model would have no effect"),
        (("--dtype", "float16"), "dtype would have no effect"),
        (("--compile",), "a trained network is not compiled"),
    ],
    ids=["names", "method", "preset", "model", "dtype", "compile"],
)
def test_settings_that_a_network_does_not_have_are_refused(
    folder: Path, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = label(folder, "out", *flags)
    except SystemExit as error:  # an error of the parser
        code = int(str(error.code))
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_folder_without_a_network_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(folder / "images"), str(folder / "out"), "--no-ray", "--network", str(folder / "truth")]
    assert jobs.label.main(words) == 2
    assert "holds no trained network; pass the MODEL of `diffseg train`" in " ".join(capsys.readouterr().err.split())
    assert label(folder, "out") == 0
    assert jobs.fit.main(["heads", str(folder / "out"), str(folder / "state.safetensors"), "--no-ray"]) == 2
    assert "these labels are of a trained network" in " ".join(capsys.readouterr().err.split())


def test_rounds_of_self_training_are_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The labels of the oracle train a network, whose own labels have the same classes and train the next one."""
    small = ["--no-ray", "--target", "classes", "--size", "32", "--width", "8", "--batch-size", "2", "--steps", "3"]
    assert label(folder, "out") == 0
    images = str(folder / "images")
    train = [str(folder / "out"), str(folder / "first"), *small, "--predict"]
    assert jobs.train.main([*train, images]) == 0
    (row, *_) = rows_of(folder / "first" / "labels")
    assert {segment["name"] for segment in row["segments"]} <= {"background", *NAMES}
    assert jobs.train.main([str(folder / "first" / "labels"), str(folder / "second"), *small]) == 0
    config = load_network(Storage(url=str(folder / "second")))[1]
    assert config["class_names"] == ["background", *NAMES]
    capsys.readouterr()
    assert jobs.train.main([*train, str(folder / "truth")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "holds labels of another network, of other images or of an earlier version; delete it" in message


def test_labels_of_an_image_do_not_depend_on_the_batch(folder: Path) -> None:
    images = [np.repeat(80 * class_map(number)[..., None], 3, axis=2) for number in range(3)]
    config = load_network(Storage(url=str(folder / "model")))[1]
    network = SegmentationNetwork(width=8, dimensions=4).eval()
    one, three = (NetworkSegmenter(network, config, batch_size=size)(images) for size in (1, 2))
    for first, second in zip(one, three, strict=True):
        assert (first.labels == second.labels).mean() > 0.999


def test_an_image_on_which_the_network_overflows_gets_no_labels(folder: Path) -> None:
    config = load_network(Storage(url=str(folder / "model")))[1]
    network = SegmentationNetwork(width=8, dimensions=4).eval()
    torch.nn.init.constant_(network.leave.weight, float("inf"))
    with pytest.raises(ValueError, match="the output of the network is not finite"):
        NetworkSegmenter(network, config)([np.zeros((8, 8, 3), np.uint8)])
