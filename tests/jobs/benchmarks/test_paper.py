"""Tests of the protocol of the paper, with the embedded model and a miniature of the folders of each data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelled_runs import write_png
from PIL import Image

from diffseg.tiny.scenes.scenes import generate_scene
from jobs.benchmarks import paper

FAST = ("--resolution", "64", "--device", "cpu", "--no-ray")


def write_pair(image: Path, ground_truth: Path, seed: int, first: int) -> None:
    """Write a generated scene of 96 x 64 px, and its regions as ids from `first` on."""
    scene = generate_scene(seed, 96)
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image[:64]).save(image)
    write_png(ground_truth, (scene.labels[:64] % 5 + first).astype(np.uint8))


def test_coco_stuff_scores_the_named_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for seed in range(3):
        write_pair(data / "val2017" / f"{seed}.jpg", data / "annotation_val2017" / f"{seed}.png", seed, 0)
    (tmp_path / "names.txt").write_text("0\n2\n")
    flags = ["--names", str(tmp_path / "names.txt"), "--out", str(out), *FAST]
    assert paper.main(["tiny", str(data), *flags]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "(coco-stuff, centre square, 64 px (nearest), 2 images)" in text
    assert "published │ 2,175 │ 72.5 │ 43.6" in text
    assert "tiny, this run │ 2 │" in text
    assert "one segment │ 2 │" in text
    assert paper.main(["tiny", str(data), *flags]) == 0  # every image is labelled already
    assert " ".join(capsys.readouterr().out.split()) == text


def test_cityscapes_is_scored_in_the_folders_of_its_archives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        name = f"ulm/ulm_00000{seed}_000019"
        image = tmp_path / "leftImg8bit" / "val" / f"{name}_leftImg8bit.png"
        write_pair(image, tmp_path / "gtFine" / "val" / f"{name}_gtFine_labelIds.png", seed, 7)
    flags = ["--benchmark", "cityscapes-27", "--out", str(tmp_path / "out"), "--preset", "paper", *FAST]
    assert paper.main(["tiny", str(tmp_path), *flags]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "published │ 500 │ 76.0 │ 21.2" in text
    assert "tau 0.9, preset paper" in text


def test_missing_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert paper.main(["tiny", str(tmp_path), *FAST]) == 2
    assert "holds none of the folders val2017, images/val2017" in " ".join(capsys.readouterr().err.split())
    for name in ("val2017", "annotation_val2017"):
        (tmp_path / name).mkdir()
    (tmp_path / "names.txt").write_text("7\n")
    assert paper.main(["tiny", str(tmp_path), "--names", str(tmp_path / "names.txt"), *FAST]) == 2
    assert "lacks 1 of 1 images, among them 7" in " ".join(capsys.readouterr().err.split())
