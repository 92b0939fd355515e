"""Pictures of the report page: regions, colours, full size, and the scores of each image."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_pages import HOSTILE, STRIPES, data_of, regions_of, report
from report_runs import labelled, write_rows

from diffseg.drawing.overlay import class_colour, hexadecimal
from diffseg.scoring.scores import IMAGE_SCORES, ImageScores
from pipeline.evaluation.pairing import RowLocation
from pipeline.evaluation.report import write_csv
from pipeline.evaluation.score import ScoredImage
from pipeline.output.commit import LabelShard, read_commits
from pipeline.report import write
from pipeline.report.colours import oklab


def lightness(colour: str) -> float:
    return float(oklab(tuple(bytes.fromhex(colour[1:])))[0])


def hue(colour: str) -> float:
    _, a, b = oklab(tuple(bytes.fromhex(colour[1:])))
    return math.atan2(b, a)


def test_pictures_hold_the_region_of_each_pixel(out: Path) -> None:
    data = data_of(out)
    for number, tile in enumerate(data["tiles-0-0"]):
        regions = regions_of(tile)
        assert tile["size"] == tile["pixels"] == [60, 40]
        assert not tile["full"]  # it would not be larger
        for region, (label, area, *_) in enumerate(tile["segments"], 1):
            np.testing.assert_array_equal(regions[5:, 20 * label : 20 * label + 20], region)
            assert area == (regions == region).sum()
        assert (regions[:5] == 0).all() == (number == 0)  # pixels in no segment


def test_names_have_one_colour_and_segments_that_touch_differ_in_lightness(out: Path) -> None:
    data = data_of(out)
    names = dict(data["run"]["names"])
    assert names.keys() == {"sky", HOSTILE}
    assert hue(names["sky"]) == pytest.approx(hue(hexadecimal(class_colour("sky"))), abs=0.05)
    named, unnamed = data["tiles-0-0"][1], data["tiles-0-0"][12]
    assert {segment[3]: segment[5] is None for segment in named["segments"]} == {
        "sky": True,
        HOSTILE: True,
        None: False,
    }
    first, second, third = (lightness(segment[5]) for segment in sorted(unnamed["segments"]))
    assert min(abs(first - second), abs(second - third)) > 0.1  # stripes: the first and the third do not touch


def test_full_size_pictures_are_stored_for_galleries_of_limited_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.repeat(np.arange(3, dtype=np.uint16), 200)[None].repeat(400, 0)
    (tmp_path / "in").mkdir()
    for number in range(3):
        Image.fromarray(np.full((400, 600, 3), 80 * number, np.uint8)).save(tmp_path / f"in/{number}.png")
    rows = [labelled(f"{number}.png", labels) for number in range(3)]
    write_rows(str(tmp_path / "out"), rows, per_shard=10, source=str(tmp_path / "in"))
    assert report(tmp_path / "out") == 0
    data = data_of(tmp_path / "out")
    assert [(tile["full"], tile["pixels"]) for tile in data["tiles-0-0"]] == [(True, [256, 171])] * 3
    for number in range(3):
        full = data[f"full-0-{number}"]
        np.testing.assert_array_equal(np.unique(regions_of(full), return_counts=True)[1], [80_000] * 3)
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(full["photograph"]))))
        assert image.shape == (400, 600, 3)
        np.testing.assert_allclose(image, 80 * number, atol=2)
    monkeypatch.setattr(write, "FULL_SIZE_ROWS", 2)
    assert report(tmp_path / "out", "--rows", "1000") == 0
    assert not any(name.startswith("full-") for name in data_of(tmp_path / "out"))
    assert report(tmp_path / "out", "--where", "stem != '1'") == 0
    assert {name for name in data_of(tmp_path / "out") if name.startswith("full-")} == {"full-0-0", "full-0-1"}


def test_scores_of_evaluations_are_shown_for_the_images_that_were_scored(tmp_path: Path) -> None:
    rows = [labelled(f"{number}.png", STRIPES) for number in range(5)]
    out = write_rows(str(tmp_path), rows, per_shard=10, source="gone")
    (shard,) = (LabelShard(commit.shard, commit.tag) for commit in read_commits(out).values())
    before = LabelShard(shard, "0" * 24)
    scores = {0: 0.25, 1: 0.75, 2: float("nan"), 3: 0.5, 4: 0.5}
    scored = [
        ScoredImage(
            location=RowLocation(shard if number != 4 else before, number),  # the labels have been replaced since
            key=f"{number}.png" if number != 3 else "another.png",  # the row was another image when it was scored
            size=(40, 60),
            scores={
                method: ImageScores(
                    values=dict.fromkeys(IMAGE_SCORES, value), regions=3, segments=3, missed=0.0, table=None
                )
                for method in ("this run", "grid")
            },
        )
        for number, value in scores.items()
    ]
    write_csv(out.at(f"{out.url}/report/paper"), "images.csv", scored)
    out.write_bytes("report/damaged/images.csv", b"method,key\nthis run,\xff\n")
    assert report(tmp_path) == 0
    data = data_of(tmp_path)
    assert data["run"]["evaluations"] == ["paper"]
    assert [row[9] for row in data["rows-0"]] == [{"0": 0.25}, {"0": 0.75}, {}, {}, {}]
    assert [list(tile["scores"]) for tile in data["tiles-0-0"]] == [["paper"]] * 3 + [[], []]
    assert data["tiles-0-0"][1]["scores"]["paper"] == [0.75] * len(IMAGE_SCORES)
    assert data["tiles-0-0"][2]["scores"]["paper"] == [None] * len(IMAGE_SCORES)
    text = (tmp_path / "report/index.html").read_text("utf-8")
    assert "Covering (paper)" in text
    assert "<bdi>report/damaged/images.csv</bdi> cannot be read" in text
