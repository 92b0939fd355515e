from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from labelled_runs import write_png

from jobs import estimate, submit


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(4):
        write_png(tmp_path / "in" / f"{number}.png", np.full((8, 8, 3), number, np.uint8))
    return tmp_path / "in"


def test_a_given_speed_needs_no_model(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(images), "--images-per-second", "0.5", "--price", "3600", "--preset", "paper"]
    assert estimate.main([*words, "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["images"] == {"value": 4, "basis": "counted"}
    assert numbers["seconds"]["value"] == pytest.approx(8)
    assert numbers["cost"]["value"] == pytest.approx(8)
    assert numbers["images_per_second"]["basis"] == "given"
    assert estimate.main(words) == 0
    text = capsys.readouterr().out
    assert "size of OUT" in text
    assert "8 s" in text
    assert not any("out" in path.name for path in images.parent.iterdir())


@pytest.mark.parametrize("wrong", [["--sample-images", "0"], ["--workers", "0"]])
def test_numbers_below_one_are_refused(images: Path, wrong: list[str]) -> None:
    assert estimate.main([str(images), *wrong]) == 2


def test_a_dry_run_prints_the_job_and_the_estimate(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(images), "s3://out/labels", "--workers", "2", "--dry-run", "--images-per-second", "0.5"]
    assert submit.main(words) == 0  # without any address
    text = capsys.readouterr().out
    assert f"label {images} s3://out/labels --workers 2\n" in text
    assert "RAY_JOB_STOP_WAIT_TIME_S" in text
    assert "8 s" in text  # one shard keeps one worker busy
