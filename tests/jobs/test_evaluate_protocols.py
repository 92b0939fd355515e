"""Tests of `diffseg evaluate --protocol` on miniatures of the data sets, with named and unnamed segments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_runs import write_png, write_run

from jobs import evaluate
from pipeline.evaluation.protocols import PROTOCOLS, ProtocolName

REGIONS = np.repeat([[0, 1, 2, 3]], 40, 0).repeat(10, 1).astype(np.uint16)
"""Four columns of 10 pixels."""


def run(out: Path, truth: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    flags = ["--baseline-images", "0", "--processes", "1"]
    assert evaluate.main([str(out), str(truth), *words, *flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


NAMED: dict[str, tuple[str, str, list[int], list[str | None]]] = {
    "voc21": ("SegmentationClass/a.png", "a.jpg", [0, 15, 7, 255], [None, "person", "car", "bus"]),
    "voc20": ("SegmentationClass/a.png", "a.jpg", [0, 15, 7, 255], ["dog", "person", "car", "bus"]),
    "context60": ("SegmentationClassContext/a.png", "a.jpg", [0, 37, 14, 47], ["wall paint", "person", "car", "sky"]),
    "context59": ("SegmentationClassContext/a.png", "a.jpg", [0, 37, 14, 47], ["dog", "person", "car", "sky"]),
    "coco-object": ("stuffthingmaps/val2017/a.png", "a.jpg", [255, 0, 2, 156], ["sky", "person", "car", "wall"]),
    "coco-stuff-171": ("stuffthingmaps/val2017/a.png", "a.jpg", [255, 0, 2, 156], ["dog", "person", "car", "sky"]),
    "cityscapes-19": (
        "gtFine/val/ulm/a_gtFine_labelIds.png",
        "a_leftImg8bit.png",
        [3, 24, 26, 23],
        ["road", "person", "car", "sky"],
    ),
    "ade20k-150": ("ADE_val_00000001.png", "ADE_val_00000001.jpg", [0, 13, 21, 3], ["wall", "person", "car", "sky"]),
}
"""Ground truth, image, ids of the four regions, and the names of their segments, which are right apart from void."""


@pytest.mark.parametrize("name", NAMED)
def test_a_wrong_name_counts_in_both_classes_and_void_in_none(
    name: ProtocolName, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, key, ids, names = NAMED[name]
    write_png(tmp_path / "truth" / path, np.array(ids, np.uint8)[REGIONS])
    vocabulary = sorted({word for word in names if word})
    wrong = ["car" if word == "person" else word for word in names]
    write_run(tmp_path / "wrong", {key: REGIONS}, names={key: wrong}, vocabulary=vocabulary)
    document = run(tmp_path / "wrong", tmp_path / "truth", "--protocol", name, capsys=capsys)
    (measured,) = document["by_protocol"]["measured"]
    columns = 4 - sum(is_void(name, ids))
    assert measured["accuracy"]["mean"] == pytest.approx((columns - 1) / columns)
    # person 0, car 1/2, and the classes of the other scored columns 1
    others = len({PROTOCOLS[name].class_of_word.get(names[i] or "", 0) for i in (0, 3) if not is_void(name, ids)[i]})
    assert measured["miou"]["mean"] == pytest.approx((0.5 + others) / (2 + others))
    assert document["named"]["miou"] == measured["miou"]


def is_void(name: str, ids: Sequence[int]) -> list[bool]:
    """Return which regions a protocol does not score."""
    void: dict[str, tuple[int, ...]] = {"voc21": (255,), "voc20": (0, 255), "context59": (0,), "coco-stuff-171": (255,)}
    void |= {"cityscapes-19": (3,), "ade20k-150": (0,)}
    return [number in void.get(name, ()) for number in ids]


def test_published_figures_stand_beside_the_measured_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, key, ids, names = NAMED["voc21"]
    write_png(tmp_path / "truth" / path, np.array(ids, np.uint8)[REGIONS])
    write_run(tmp_path / "out", {key: REGIONS}, names={key: names}, vocabulary=["person", "car", "bus", "lorry"])
    flags = ["--protocol", "voc21", "--baseline-images", "0", "--processes", "1"]
    assert evaluate.main([str(tmp_path / "out"), str(tmp_path / "truth"), *flags]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Protocol voc21" in text
    assert "published: NACLIP, CLIP ViT-B/16 │ 1,449 │ – │ 64.1" in text
    assert "this run │ 1 │ 100.0 ±0.0 │ 100.0 ±0.0" in text
    assert "nothing is matched; void: not scored" in text
    assert "layout voc, ids that are not scored: those of the protocol" in text
    assert "1 names of the run are no class of voc21 (lorry)" in text
    assert "NACLIP, CLIP ViT-B/16: README of sinahmr/NACLIP" in text


def test_unnamed_runs_are_scored_by_matching_but_not_by_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "truth" / "stuffthingmaps" / "a.png", np.array([0, 2, 90, 255], np.uint8)[REGIONS])
    write_run(tmp_path / "out", {"a.jpg": REGIONS})
    paths = [str(tmp_path / "out"), str(tmp_path / "truth")]
    for name in ("google-coco-stuff-27", "picie-coco-stuff-27", "diffcut-coco-stuff-27"):
        document = run(tmp_path / "out", tmp_path / "truth", "--protocol", name, capsys=capsys)
        (measured,) = document["by_protocol"]["measured"]
        assert (measured["accuracy"]["mean"], measured["miou"]["mean"]) == (1, 1), name
        assert document["by_protocol"]["void"] == "not scored"
        assert document["by_protocol"]["ids_mean_nothing"] == name.startswith("picie")
    assert evaluate.main([*paths, "--protocol", "coco-object"]) == 2
    assert "scores names, and this run has none" in " ".join(capsys.readouterr().err.split())
    for flags in (["--layout", "coco-stuff"], ["--crop", "centre"], ["--size", "8"], ["--ignore", ""]):
        assert evaluate.main([*paths, "--protocol", "google-coco-stuff-27", *flags]) == 2
        assert f"sets {flags[0]} itself" in " ".join(capsys.readouterr().err.split())
