"""Tests of `diffseg export` for runs with names: class maps, polygons and cards mean what their readers expect."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from labelled_runs import write_png, write_run
from PIL import Image, ImageDraw

import jobs.export
from diffseg import IGNORE

VOCABULARY = ("sky", "road", "sea")
KEYS = ("a.png", "b/c.png", "d.png")
NAMES = ("road", "background", None, "sky")
"""Names of the segments of every image; the third has a score between the two thresholds, so it is ignored."""
CLASSES = {0: 2, 1: 0, 3: 1}
"""Class of each segment, where 1 is the first name."""


def labels_of(number: int) -> np.ndarray:
    """Return the label map of an image, uint16 [24, 32], with four segments and ignored pixels."""
    labels = np.zeros((24, 32), np.uint16)
    labels[:, 8 + number :] = 1
    labels[16:, 20:] = 2
    labels[2:12, 10:26] = 3
    labels[5:8, 14:18] = 1  # a hole
    labels[0, :3] = IGNORE
    return labels


def classes_of(number: int) -> np.ndarray:
    """Return the class map of an image, uint8 [24, 32], where 255 is to be ignored."""
    labels = labels_of(number)
    return np.select([labels == label for label in CLASSES], list(CLASSES.values()), 255).astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return OUT of a run with names over three images."""
    folder = tmp_path_factory.mktemp("classes")
    for number, key in enumerate(KEYS):
        write_png(folder / "in" / key, np.full((24, 32, 3), 60 * number, np.uint8))
    labels = {key: labels_of(number) for number, key in enumerate(KEYS)}
    write_run(folder / "out", labels, source=folder / "in", names=dict.fromkeys(KEYS, NAMES), vocabulary=VOCABULARY)
    return folder / "out"


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return OUT of a run without names."""
    folder = tmp_path_factory.mktemp("unnamed")
    write_png(folder / "in/a.png", np.zeros((24, 32, 3), np.uint8))
    write_run(folder / "out", {"a.png": labels_of(0)}, source=folder / "in")
    return folder / "out"


def export(run: Path, dest: Path, to: str, *flags: str) -> int:
    return jobs.export.main([str(run), str(dest), "--to", to, "--processes", "1", *flags])


def pixels(path: Path) -> np.ndarray:
    """Return the pixels of a file."""
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    ("to", "images", "maps"),
    [("mmseg", "img_dir/train", "ann_dir/train"), ("ultralytics-semantic", "images/train", "masks/train")],
)
def test_class_maps_lie_beside_images_of_the_same_name(
    to: str, images: str, maps: str, run: Path, tmp_path: Path
) -> None:
    assert export(run, tmp_path, to) == 0
    names = {path.stem for path in (tmp_path / images).iterdir()}
    assert names == {path.stem for path in (tmp_path / maps).iterdir()} == {"a", "b--c", "d"}
    for number, name in enumerate(("a", "b--c", "d")):
        found = pixels(tmp_path / maps / f"{name}.png")
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, classes_of(number))


def test_mmseg_has_jpegs_and_its_metainfo(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path, "mmseg") == 0
    assert {path.suffix for path in (tmp_path / "img_dir/train").iterdir()} == {".jpg"}  # the default img_suffix
    metainfo = json.loads((tmp_path / "metainfo.json").read_bytes())
    assert metainfo["classes"] == ["background", *VOCABULARY]
    assert np.array(metainfo["palette"]).shape == (4, 3)


def test_ultralytics_semantic_names_the_folder_of_masks_and_the_background(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path, "ultralytics-semantic") == 0
    data = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert data == {
        "train": "images/train",
        "val": "images/train",
        "masks_dir": "masks",
        "names": {0: "background", 1: "sky", 2: "road", 3: "sea"},
    }


@pytest.mark.parametrize("to_pixels", [np.trunc, np.round])  # Ultralytics and supervision
def test_yolo_polygons_draw_the_masks_again(
    to_pixels: Callable[[np.ndarray], np.ndarray], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run, tmp_path, "yolo") == 0
    assert "IoU of each mask with its polygon: mean 1.0000, lowest 1.0000" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "data.yaml").read_text())["names"] == dict(enumerate(VOCABULARY))
    for number, name in enumerate(("a", "b--c", "d")):
        labels = labels_of(number)
        lines = [line.split() for line in (tmp_path / f"labels/train/{name}.txt").read_text().splitlines()]
        assert [line[0] for line in lines] == ["1", "0"]  # road and sky; background and uncertain segments are left out
        for line, label in zip(lines, (0, 3), strict=True):
            points = to_pixels(np.array(line[1:], np.float32).reshape(-1, 2) * [32, 24]).astype(int)
            drawn = Image.new("1", (32, 24))
            ImageDraw.Draw(drawn).polygon([tuple(point) for point in points.tolist()], fill=1, outline=1)
            np.testing.assert_array_equal(np.asarray(drawn), labels == label)
    with open(tmp_path / "polygons.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["name"], row["segment"], float(row["iou"])) for row in rows} >= {("a", "0", 1.0), ("b--c", "3", 1.0)}


def test_png_maps_mirror_the_folders_of_the_source(run: Path, unnamed: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path / "named", "png", "--copy-images") == 0
    for number, key in enumerate(KEYS):
        np.testing.assert_array_equal(pixels(tmp_path / "named/labels" / key), classes_of(number))
        assert (tmp_path / "named/images" / key).read_bytes() == (run.parent / "in" / key).read_bytes()
    assert json.loads((tmp_path / "named/id2label.json").read_bytes())["2"] == "road"
    assert export(unnamed, tmp_path / "unnamed", "png") == 0
    labels = pixels(tmp_path / "unnamed/labels/a.png")
    np.testing.assert_array_equal(np.where(labels == 255, IGNORE, labels.astype(int)), labels_of(0))
    assert not (tmp_path / "unnamed/images").exists()


@pytest.mark.parametrize("to", ["voc", "mmseg", "ultralytics-semantic"])
def test_class_maps_of_a_run_without_names_are_refused_unless_asked_for(
    to: str, unnamed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(unnamed, tmp_path, to) == 2
    assert "would hold class 1 everywhere" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
    assert export(unnamed, tmp_path, to, "--without-names") == 0


def test_a_run_whose_only_name_is_segment_is_named(tmp_path: Path) -> None:
    write_png(tmp_path / "in/a.png", np.zeros((24, 32, 3), np.uint8))
    labels = {"a.png": labels_of(0)}
    names = {"a.png": ("segment", "background", None, "segment")}
    write_run(tmp_path / "out", labels, source=tmp_path / "in", names=names, vocabulary=("segment",))
    assert export(tmp_path / "out", tmp_path / "dest", "png") == 0
    assert json.loads((tmp_path / "dest/id2label.json").read_text()) == {"0": "background", "1": "segment"}
    assert sorted(np.unique(pixels(next((tmp_path / "dest/labels").rglob("a.png"))))) == [0, 1, 255]


def test_labels_of_a_named_hugging_face_data_set_are_classes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    dest = tmp_path / "dest"
    assert export(run, dest, "huggingface", "--val-share", "0.5", "--license", "cc-by-4.0") == 0
    loaded = datasets.load_dataset(str(dest), cache_dir=str(tmp_path / "cache"))
    rows = {row["key"]: row for split in loaded.values() for row in split}
    assert set(loaded) == {"train", "validation"}
    assert [row["stem"] for row in rows.values()] != list(rows)
    for number, key in enumerate(KEYS):
        np.testing.assert_array_equal(np.asarray(rows[key]["label"]), classes_of(number))
        instances = np.asarray(rows[key]["instances"]).astype(int)
        expected = np.where(labels_of(number) == 2, IGNORE, labels_of(number))
        np.testing.assert_array_equal(np.where(instances == 255, IGNORE, instances), expected)
    assert json.loads((dest / "id2label.json").read_bytes()) == {
        "0": "background",
        "1": "sky",
        "2": "road",
        "3": "sea",
    }
    _, head, text = (dest / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["license"] == "cc-by-4.0"
    assert card["task_categories"] == ["image-segmentation"]
    assert card["size_categories"] == ["n<1K"]
    for part in ("| 2 | road |", "| fingerprint of the run | `0123456789abcdef` |", "| model | `tiny` |"):
        assert part in text


def test_the_command_and_the_card_say_that_ids_mean_nothing_without_names(
    unnamed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(unnamed, tmp_path, "huggingface") == 0
    for text in (capsys.readouterr().err, (tmp_path / "README.md").read_text()):
        assert "means nothing across images" in " ".join(text.split())
    assert not (tmp_path / "id2label.json").exists()
