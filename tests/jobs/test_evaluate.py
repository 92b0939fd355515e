"""Tests of `diffseg evaluate` on runs with known scores."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_runs import shards_of_keys, write_png, write_run
from PIL import Image

from diffseg.scoring.baselines import BASELINES
from diffseg.segmentation import IGNORE
from diffseg.tiny.scenes.scenes import generate_scene
from jobs import evaluate

HEIGHT, WIDTH = 40, 60
NO_BASELINES = ("--baseline-images", "0")
KEYS = tuple(f"{number}.png" for number in range(6))


def ground_truth(number: int) -> np.ndarray:
    """Return two classes; the second begins at a column that differs from image to image."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:, 30 + number :] = 1
    return labels


@pytest.fixture
def run_and_truth(tmp_path: Path) -> tuple[Path, Path]:
    """Return OUT of a run of six images, of which one failed and one has no ground truth, and TRUTH."""
    labels: dict[str, np.ndarray | None] = {}
    for number, key in enumerate(KEYS):
        scene = generate_scene(number, 64).image[:HEIGHT, :WIDTH]
        write_png(tmp_path / "images" / key, scene)
        partition = 1 - ground_truth(number).astype(np.uint16)  # the true partition with other ids
        labels[key] = None if number == 3 else partition
        if number != 5:
            write_png(tmp_path / "truth" / key, ground_truth(number))
    one_segment = labels[KEYS[4]]
    assert one_segment is not None
    one_segment[:] = 0
    write_run(tmp_path / "out", labels, source=tmp_path / "images")
    write_png(tmp_path / "truth" / "9.png", ground_truth(9))
    return tmp_path / "out", tmp_path / "truth"


def run(*words: str | Path, code: int = 0, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert evaluate.main([*map(str, words), "--json", "--processes", "1"]) == code
    return json.loads(capsys.readouterr().out)


def means(document: Mapping[str, Any], method: int = 0) -> dict[str, float]:
    return {name: figure["mean"] for name, figure in document["methods"][method]["figures"].items()}


def test_scores_and_counts_are_those_expected(
    run_and_truth: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    document = run(*run_and_truth, "--baseline-images", "2", capsys=capsys)
    # Images 0, 1 and 2 are right. Image 4 is one segment, in which 34 of 60 columns are right.
    share = 34 / 60
    expected = {"accuracy": (3 + share) / 4, "miou": (3 + share / 2) / 4, "best_iou": (3 + 0.5) / 4, "merged": 2 / 4}
    assert {name: means(document)[name] for name in expected} == pytest.approx(expected)
    counts = document["counts"]
    assert (counts["rows"], counts["scored"], counts["without_label_map"]) == (6, 4, {"undecodable": 1})
    assert counts["without_truth"] == {"count": 1, "first": ["5.png"]}
    assert counts["truths_without_row"] == {"count": 2, "first": ["3.png", "9.png"]}
    assert document["protocol"]["layout"] == "labels"
    assert document["protocol"]["pixels"] == "whole images, own size"
    names = [(method["name"], method["images"]) for method in document["methods"]]
    assert names == [("this run", 4), ("this run, images of the baselines", 2), *((name, 2) for name in BASELINES)]
    assert document["methods"][0]["figures"]["class_miou"]["matching"] == "for each image, counted by class"
    assert document["worst"][0] == "4.png"


def test_names_are_scored_without_matching(
    run_and_truth: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Image 0 has the right names, image 1 has them swapped, and one segment of image 2 has no name."""
    names: dict[str, list[str | None]] = {"0.png": ["thing", "background"], "1.png": ["background", "thing"]}
    names["2.png"] = [None, "background"]
    labels = {key: 1 - ground_truth(int(key[0])).astype(np.uint16) for key in names}
    write_run(tmp_path / "named", labels, names=names, vocabulary=["thing"])
    classes = tmp_path / "classes.json"
    classes.write_text('{"background": 0, "thing": 1}')
    words = (tmp_path / "named", run_and_truth[1], "--classes", classes, *NO_BASELINES)
    named = run(*words, capsys=capsys)["named"]
    # columns of 60: true positives, false positives, false negatives
    background, thing = (30 + 32, 29, 31), (30, 31, 29 + 28)
    iou = {"background": background[0] / sum(background), "thing": thing[0] / sum(thing)}
    assert named["iou"] == pytest.approx(iou)
    assert named["miou"]["mean"] == pytest.approx(np.mean([*iou.values()]))
    assert named["accuracy"]["mean"] == pytest.approx((30 + 30 + 32) / 180)
    assert evaluate.main([*map(str, words), "--processes", "1"]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"thing\s+│\s+{iou['thing']:.3f}", text)
    assert run(*run_and_truth, *NO_BASELINES, capsys=capsys)["named"] is None


@pytest.mark.parametrize("classes", ["{}", '{"a": "b"}', '{"a": -1}', "[1]", "no such file", '{"a": 1'])
def test_invalid_classes_are_refused(
    classes: str, run_and_truth: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([*map(str, run_and_truth), "--classes", classes]) == 2
    assert "--classes" in capsys.readouterr().err


def test_the_report_has_scores_a_table_and_pictures(
    run_and_truth: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = run(*run_and_truth, "--report", tmp_path / "report", "--baseline-images", "1", capsys=capsys)
    assert json.loads((tmp_path / "report" / "scores.json").read_text()) == document
    with (tmp_path / "report" / "images.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    ours = [line for line in lines if line["method"] == "this run"]
    assert sorted(line["key"] for line in ours) == ["0.png", "1.png", "2.png", "4.png"]
    assert np.mean([float(line["covering"]) for line in ours]) == pytest.approx(means(document)["covering"])
    first = next(iter(shards_of_keys(KEYS, 2)))
    row = next(line for line in ours if line["key"] == "0.png")
    assert (row["shard"], row["row"], row["height"], row["width"]) == (first, "0", "40", "60")
    assert len(lines) == 4 + len(BASELINES)
    for name in ("worst.jpg", "best.jpg"):
        with Image.open(tmp_path / "report" / name) as picture:
            assert picture.height > 4 * 200
    # The worst image comes first. The left and the right of its third tile, the segments, differ in colour.
    with Image.open(tmp_path / "report" / "worst.jpg") as picture:
        tile = np.asarray(picture)[8:264].astype(int)
    width = round(WIDTH * 256 / HEIGHT)
    left, right = (
        tile[100:150, 8 + 2 * (width + 8) + x : 8 + 2 * (width + 8) + x + 20].mean((0, 1)) for x in (40, 320)
    )
    assert not (left == right).all()


def test_processes_and_ray_give_the_same_scores(
    run_and_truth: tuple[Path, Path], local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    here = run(*run_and_truth, "--baseline-images", "1", capsys=capsys)
    for flags in (("--processes", "2"), ("--address", "auto")):
        assert evaluate.main([*map(str, run_and_truth), "--json", "--baseline-images", "1", *flags]) == 0
        assert json.loads(capsys.readouterr().out) == here


def test_tables_state_the_protocol_of_every_score(
    run_and_truth: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*map(str, run_and_truth), "--crop", "centre", "--size", "24", "--processes", "1", "--baseline-images", "1"]
    assert evaluate.main(words) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Segments matched to classes (labels, centre square, 24 px (nearest), 4 images)" in text
    assert "Regions, without matching (labels, centre square, 24 px (nearest), 4 images)" in text
    assert "not scored: 1 row without a label map (1 undecodable)" in text
    assert "not used: 2 ground-truth maps without a labelled row (3.png, 9.png)" in text
    assert "layout labels, ids that are not scored: the largest id; paired by path" in text
    assert "once for the data set" not in text  # the ids of a run without names mean nothing beyond an image
    assert "google/diffseg" in text
    for name in BASELINES:
        assert f"{name} │ 1 │" in text


def test_unusable_ground_truth_is_named_and_the_rest_is_scored(
    run_and_truth: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out, truth = run_and_truth
    write_png(truth / "0.png", ground_truth(0).T.copy())
    write_png(truth / "1.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    (truth / "2.png").write_bytes((truth / "2.png").read_bytes()[:60])
    document = run(out, truth, *NO_BASELINES, code=1, capsys=capsys)
    assert (document["counts"]["scored"], document["counts"]["unusable_truths"]) == (1, 3)
    messages = {problem["key"]: problem["message"] for problem in document["problems"]}
    assert messages["0.png"].startswith(
        "0.png: has 40 x 60 pixels, the label map 60 x 40; expected the same. The image is"
    )
    assert f"{truth}/1.png: is a PNG of mode RGB" in messages["1.png"]
    assert f"{truth}/2.png: is a broken PNG" in messages["2.png"]
    assert evaluate.main([str(out), str(truth), *NO_BASELINES, "--processes", "1"]) == 1
    assert "3 ground-truth maps cannot be used, and their images are not scored:" in capsys.readouterr().out


def test_without_source_images_only_the_baselines_are_missing(
    run_and_truth: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert evaluate.main([*map(str, run_and_truth), "--processes", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert "use --images" in captured.err
    assert [method["name"] for method in json.loads(captured.out)["methods"]] == ["this run"]
    (tmp_path / "elsewhere" / "0.png").write_bytes(b"broken")
    document = run(*run_and_truth, "--images", tmp_path / "elsewhere", capsys=capsys)
    assert [method["images"] for method in document["methods"]][:3] == [4, 3, 3]
    (problem,) = document["problems"]
    assert (problem["key"], problem["what"]) == ("0.png", "image")


def test_ids_to_ignore_are_taken_from_the_flag(
    run_and_truth: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert means(run(*run_and_truth, "--ignore", "1", *NO_BASELINES, capsys=capsys))["accuracy"] == 1
    assert evaluate.main([*map(str, run_and_truth), "--ignore", "one"]) == 2
    assert "--ignore one: expected whole numbers" in capsys.readouterr().err


def test_a_run_is_scored_against_another_run_and_pixels_in_no_segment_are_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ground_truth(0).astype(np.uint16)
    cropped = labels.copy()
    cropped[:, :10] = cropped[:, -10:] = IGNORE
    write_run(tmp_path / "a", {"1.jpg": labels})
    write_run(tmp_path / "b", {"1.jpg": cropped})
    whole = run(tmp_path / "b", tmp_path / "a", capsys=capsys)
    assert means(whole)["accuracy"] == pytest.approx(40 / 60)
    assert whole["counts"]["pixels_in_no_segment"] == pytest.approx(20 / 60)
    assert means(run(tmp_path / "b", tmp_path / "a", "--crop", "centre", capsys=capsys))["accuracy"] == 1


def test_an_image_whose_ground_truth_ignores_every_pixel_is_not_scored(
    run_and_truth: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out, truth = run_and_truth
    write_png(truth / "4.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    document = run(out, truth, *NO_BASELINES, capsys=capsys)
    assert (document["counts"]["scored"], document["counts"]["truth_says_nothing"]) == (3, 1)
    assert document["methods"][0]["images"] == 3
    assert means(document)["covering"] == 1
    assert "4.png" not in document["worst"]


def test_damaged_labels_are_named(run_and_truth: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    shard = list(shards_of_keys(KEYS, 2))[1]
    (run_and_truth[0] / "labels" / f"{shard}.parquet").write_bytes(b"PAR1, damaged")
    assert evaluate.main([*map(str, run_and_truth), "--processes", "1"]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert f"labels/{shard}.parquet: cannot be read as Parquet" in text
    assert "diffseg verify --redo" in text


def test_nothing_to_score_is_refused(run_and_truth: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    out, truth = run_and_truth
    assert evaluate.main([str(truth), str(truth)]) == 2
    assert "no run.json here" in capsys.readouterr().err
    for path in truth.iterdir():
        path.rename(truth / f"other-{path.name}")
    assert evaluate.main([str(out), str(truth)]) == 2
    assert "none of 5 rows can be paired with any of 6 ground-truth maps" in " ".join(capsys.readouterr().err.split())


def test_importing_the_command_imports_neither_torch_nor_ray() -> None:
    code = "import sys, jobs.evaluate\nassert not {'torch', 'ray', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=540)


def test_two_runs_are_compared_on_the_images_that_both_have(
    run_and_truth: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other run lacks image 0, is right where this one is wrong, and has half of image 1 wrong."""
    out, truth = run_and_truth
    labels = {key: ground_truth(int(key[0])).astype(np.uint16) for key in KEYS[1:]}
    labels["1.png"][:20] = 0
    write_run(tmp_path / "other", labels)
    document = run(out, truth, *NO_BASELINES, "--compare", tmp_path / "other", capsys=capsys)
    comparison = document["comparison"]
    assert comparison["images"] == 3  # images 1, 2 and 4; this run has no label map of image 3
    accuracy = comparison["scores"]["accuracy"]
    this, other = (1 + 1 + 34 / 60) / 3, (1 - 0.5 * 29 / 60 + 1 + 1) / 3
    assert (accuracy["this"]["mean"], accuracy["other"]["mean"]) == pytest.approx((this, other))
    assert accuracy["difference"]["mean"] == pytest.approx(this - other)
    assert "class_miou" in comparison["scores"]
    assert evaluate.main([*map(str, run_and_truth), *NO_BASELINES, "--compare", str(out), "--processes", "1"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "4 images that both have" in text
    assert "±.000*" not in text  # a run does not differ from itself


def test_evaluations_under_names_are_kept(run_and_truth: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    out, truth = run_and_truth
    whole = run(out, truth, *NO_BASELINES, "--name", "whole", capsys=capsys)
    centre = run(out, truth, *NO_BASELINES, "--name", "centre", "--crop", "centre", capsys=capsys)
    for name, document in (("whole", whole), ("centre", centre)):
        assert json.loads((out / "report" / name / "scores.json").read_text()) == document
    assert not (out / "report" / "scores.json").exists()
    for wrong in ("../elsewhere", "", "data"):
        assert evaluate.main([str(out), str(truth), "--name", wrong]) == 2
        assert "--name" in capsys.readouterr().err


def test_one_matching_for_the_data_set_needs_names(
    run_and_truth: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not any(name.startswith("dataset_") for name in means(run(*run_and_truth, *NO_BASELINES, capsys=capsys)))
    labels = {key: ground_truth(int(key[0])).astype(np.uint16) for key in KEYS}
    write_run(tmp_path / "named", labels, names={key: ["a", "b"] for key in KEYS}, vocabulary=["a", "b"])
    assert means(run(tmp_path / "named", run_and_truth[1], *NO_BASELINES, capsys=capsys))["dataset_miou"] == 1
