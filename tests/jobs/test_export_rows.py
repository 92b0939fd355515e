"""Tests of which rows `diffseg export` writes, into which part, and where it finds their source images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from labelled_runs import write_png, write_run
from PIL import Image

import jobs.export
from pipeline.output.selection import split_of

KEYS = tuple(f"{folder}/é {number}.png" for folder in "ab" for number in range(6))


def labels_of(number: int) -> np.ndarray:
    """Return a label map with 1 to 3 segments, uint16 [8, 12]."""
    return np.repeat(np.arange(12, dtype=np.uint16)[None] * (1 + number % 3) // 12, 8, axis=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return OUT of a run over twelve images."""
    folder = tmp_path_factory.mktemp("rows")
    for number, key in enumerate(KEYS):
        write_png(folder / "in" / key, np.full((8, 12, 3), 10 * number, np.uint8))
    labels = {key: labels_of(number) for number, key in enumerate(KEYS)}
    write_run(folder / "out", labels, source=folder / "in", per_shard=4)
    return folder / "out"


def export(run: Path, dest: Path | str, to: str, *flags: str) -> int:
    return jobs.export.main([str(run), str(dest), "--to", to, "--processes", "1", *flags])


def keys_csv(folder: Path) -> dict[str, dict[str, str]]:
    """Return the lines of keys.csv by key."""
    with open(folder / "keys.csv", encoding="utf-8", newline="") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


def test_an_expression_and_a_file_of_keys_select_rows(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys.txt").write_text("\n".join((KEYS[0], KEYS[1], "a/é 2", KEYS[9], "nowhere.png")), encoding="utf-8")
    flags = ("--where", "n_segments > 1 and 'a/' in key", "--keys", str(tmp_path / "keys.txt"))
    assert export(run, tmp_path / "dest", "png", *flags, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["counts"] == {"exported": 2, "not_selected": 10}
    assert facts["keys_missing"] == ["nowhere.png"]
    assert keys_csv(tmp_path / "dest").keys() == {KEYS[1], KEYS[2]}
    assert export(run, tmp_path / "other", "png", "--where", "segments > 1") == 2
    assert "no column segments" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("to", ["coco-instances", "yolo", "png"])
def test_the_validation_part_is_the_same_in_every_format(to: str, run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path, to, "--val-share", "0.4", "--copy-images") == 0
    expected = {part: {key for key in KEYS if (split_of(key) < 0.4) == (part == "val")} for part in ("train", "val")}
    assert all(expected.values())
    for part, keys in expected.items():
        if to == "coco-instances":
            document = json.loads((tmp_path / f"annotations/instances_{part}.json").read_bytes())
            found = {image["key"]: f"{part}/{image['file_name']}" for image in document["images"]}
        else:
            found = {key: f"{part}/{row['name']}.png" for key, row in keys_csv(tmp_path).items() if row["part"] == part}
        assert found.keys() == keys
        assert all((tmp_path / "images" / file).is_file() for file in found.values())


def test_a_part_without_images_is_reported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(run, tmp_path / "a", "cvat", "--val-share", "0.0001") == 0
    assert "no image is in the part val" in capsys.readouterr().err
    assert export(run, tmp_path / "b", "cvat", "--val-share", "0.4", "--json") == 0
    assert sum(json.loads(capsys.readouterr().out)["parts"].values()) == len(KEYS)
    assert export(run, tmp_path / "c", "cvat", "--val-share", "1") == 2
    assert "expected at least 0 and less than 1" in capsys.readouterr().err


def test_keys_are_joined_by_their_stems(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path, "cvat") == 0
    assert {key: row["stem"] for key, row in keys_csv(tmp_path).items()} == {key: key[:-4] for key in KEYS}


def test_images_of_a_folder_that_has_changed_are_found_by_their_keys(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, key in enumerate(KEYS):
        if number != 3:  # a file is gone, and others are new, so that all groups are different ones
            write_png(tmp_path / "in" / key, np.full((8, 12, 3), 10 * number, np.uint8))
    for number in range(20):
        write_png(tmp_path / "in" / f"a/new {number}.png", np.zeros((8, 12, 3), np.uint8))
    flags = ("--copy-images", "--images", str(tmp_path / "in"), "--json")
    assert export(run, tmp_path / "dest", "png", *flags) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["counts"] == {"exported": 11, "no_photograph": 1}
    assert facts["problems"][0][0] == KEYS[3]
    for number, key in enumerate(KEYS):
        if number != 3:
            with Image.open(tmp_path / "dest/images" / key) as image:
                assert image.getpixel((0, 0)) == (10 * number,) * 3


def test_label_studio_is_told_where_copied_images_are(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = tmp_path / "dest"
    assert export(run, f"file://{dest}", "label-studio", "--copy-images") == 0
    text = capsys.readouterr().err.replace("\n", "")
    assert "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true" in text
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={dest}" in text
    assert f"path of the storage: {dest}/images" in text
    tasks = [task for path in (dest / "tasks").iterdir() for task in json.loads(path.read_bytes())]
    for task in tasks:
        prefix, _, path = task["data"]["image"].partition("?d=")
        assert prefix == "/data/local-files/"
        assert (dest / path).is_file()
    assert len(tasks) == len(KEYS)
