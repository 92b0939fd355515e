"""Tests of `make evaluate-sd`, with the embedded model or given labels, on a miniature of each data set."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from labelled_runs import write_png, write_run
from PIL import Image

from diffseg.tiny.scenes.scenes import generate_scene
from jobs.benchmarks import paper
from pipeline.executor import driver

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
    assert "(coco-stuff, centre square, 512 px (nearest), 2 images)" in text
    assert "(coco-stuff, centre square, 128 px (nearest, of 1,024 px), 2 images)" in text
    assert "published: DiffSeg, SD 1.4, 512 px │ 2,175 │ 72.5 │ 43.6" in text
    assert "published: DiffCut │ 2,175 │ – │ 49.1" in text
    assert text.count("this run │ 2 │") == text.count("one segment │ 2 │") >= 4
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
    assert "published: DiffSeg, SD 1.4, 512 px │ 500 │ 76.0 │ 21.2" in text
    assert "cityscapes-27: tiny at 64 px, tau 0.9, preset paper" in text


LAYOUTS = {
    "voc": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", "ImageSets/Segmentation/val.txt", (0, 1, 20), 255),
    "context": (
        "JPEGImages/{}.jpg",
        "SegmentationClassContext/{}.png",
        "ImageSets/SegmentationContext/val.txt",
        (0, 1, 59),
        255,
    ),
    "coco-object": (
        "val2017/{}.jpg",
        "stuffthingmaps_trainval2017/val2017/{}.png",
        "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt",
        (91, 0, 89),
        255,
    ),
    "ade20k": ("images/validation/{}.jpg", "annotations/validation/{}.png", None, (3, 1, 149), 0),
}
"""Image, ground truth and list of images, ids of three regions (background first where it exists), and the void id."""


@pytest.mark.parametrize("benchmark", LAYOUTS)
def test_each_data_set_is_scored_in_its_own_folders(
    benchmark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The labels are the true regions, with background and void in two segments, which DiffCut's protocol joins."""
    image, ground_truth, names, ids, void = LAYOUTS[benchmark]
    regions = np.repeat([[0, 0, 1, 1, 2, 2, 3, 3]], 60, 0).repeat(10, 1).astype(np.uint16)  # 60 x 80 px
    for name in ("a_000001", "b_000002"):
        (tmp_path / image.format(name)).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60)).save(tmp_path / image.format(name))
        write_png(tmp_path / ground_truth.format(name), np.array([ids[1], ids[0], ids[2], void], np.uint8)[regions])
    if names:
        (tmp_path / names).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / names).write_text("b_000002\n")

    def label_run(source: str, out: str, **_: Any) -> SimpleNamespace:
        keys = [path.name for path in Path(source).iterdir()]
        write_run(Path(out), dict.fromkeys(keys, regions), source=source)
        return SimpleNamespace(failed=0)

    monkeypatch.setattr(driver, "label_run", label_run)
    assert paper.main(["tiny", str(tmp_path), "--benchmark", benchmark, "--out", str(tmp_path / "out"), *FAST]) == 0
    capsys.readouterr()
    document = json.loads((tmp_path / "out" / f"diffcut-{benchmark}" / "scores.json").read_text())["by_protocol"]
    measured = document["measured"][0]
    assert (measured["name"], measured["images"]) == ("this run", 2 if names is None else 1)
    assert (measured["accuracy"]["mean"], measured["miou"]["mean"]) == (1, 1)
    assert [figures["method"] for figures in document["published"]] == ["DiffCut", "DiffSeg, evaluated by DiffCut"]


def test_missing_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert paper.main(["tiny", str(tmp_path), *FAST]) == 2
    assert "holds none of the folders val2017, images/val2017" in " ".join(capsys.readouterr().err.split())
    for name in ("val2017", "annotation_val2017"):
        (tmp_path / name).mkdir()
    (tmp_path / "names.txt").write_text("7\n")
    assert paper.main(["tiny", str(tmp_path), "--names", str(tmp_path / "names.txt"), *FAST]) == 2
    assert "lacks 1 of 1 images, among them 7" in " ".join(capsys.readouterr().err.split())
