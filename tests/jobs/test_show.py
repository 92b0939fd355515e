"""Tests of `diffseg show`: the picture of one sample, with any key, and the message when there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from labelled_runs import write_png, write_run
from PIL import Image

import jobs.show
from diffseg.drawing.overlay import palette
from diffseg.segmentation import borders

LABELS = np.repeat(np.arange(3, dtype=np.uint16), 20)[None].repeat(40, 0)  # three stripes of 20 x 40 pixels
HOSTILE = "a/[red]b é.png"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return OUT of a run over two images, of which the second failed."""
    for key in (HOSTILE, "c.png"):
        write_png(tmp_path / "in" / key, np.full((40, 60, 3), 90, np.uint8))
    write_run(tmp_path / "out", {HOSTILE: LABELS, "c.png": None}, source=tmp_path / "in")
    return tmp_path / "out"


def show(out: Path, key: str, *flags: str) -> int:
    return jobs.show.main([str(out), key, "--picture", f"{out.parent}/picture.png", *flags])


def test_the_picture_is_the_image_and_its_segments(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(out, HOSTILE) == 0
    assert HOSTILE in capsys.readouterr().out
    picture = np.asarray(Image.open(out.parent / "picture.png"))
    assert picture.shape[0] == jobs.show.PICTURE_HEIGHT + 2 * 8
    height, width = jobs.show.PICTURE_HEIGHT, round(60 * jobs.show.PICTURE_HEIGHT / 40)
    image, drawn = (picture[8 : 8 + height, left : left + width] for left in (8, 8 + width + 8))
    assert (image == 90).all()
    for label, colour in enumerate(palette(3)):
        x, y = int((20 * label + 10) * width / 60), height // 2
        np.testing.assert_allclose(drawn[y, x], 0.45 * 90 + 0.55 * colour, atol=2)
    assert borders(LABELS).any()


def test_a_row_without_labels_prints_its_error(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(out, "c.png") == 1
    assert "planted failure" in capsys.readouterr().out
    assert show(out, "c.png", "--json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["status"], facts["picture"]) == ("undecodable", None)
    assert not (out.parent / "picture.png").exists()


def test_without_the_source_image_the_segments_alone_are_drawn(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out.parent / "in").rename(out.parent / "elsewhere")
    assert show(out, HOSTILE) == 0
    assert "--images" in capsys.readouterr().err
    assert show(out, HOSTILE, "--images", str(out.parent / "elsewhere")) == 0
    assert "--images" not in capsys.readouterr().err


def test_an_unknown_key_is_refused_and_similar_keys_are_named(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(out, "a/b e.png") == 2
    assert repr(HOSTILE) in capsys.readouterr().err


def test_without_a_key_the_keys_are_listed(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs.show.main([str(out)]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == sorted([HOSTILE, "c.png"])
    assert jobs.show.main([str(out), "--json"]) == 0
    assert sorted(json.loads(capsys.readouterr().out)["keys"]) == sorted([HOSTILE, "c.png"])
    assert not (out.parent / "picture.png").exists()
