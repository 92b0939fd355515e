"""Commands that read the levels of a run: `tune`, the curve of `evaluate`, exports, and the training reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_runs import write_png, write_run
from PIL import Image

import jobs.evaluate
import jobs.export
import jobs.tune
from diffseg.levels import Cut
from pipeline.evaluation import score
from pipeline.evaluation.score import SegmentName
from pipeline.evaluation.tune import tune
from pipeline.training.dataset import DatasetSettings, LabelDataset

HEIGHT, WIDTH = 24, 24
LABELS = np.repeat(np.repeat(np.arange(3, dtype=np.uint16)[None], HEIGHT, axis=0), WIDTH // 3, axis=1)
TRUTH = np.where(LABELS < 2, 0, 1).astype(np.uint8)
KEYS = tuple(f"{number}.png" for number in range(6))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with OUT of a run of three segments per image, and with the truth, of which two are one class."""
    folder = tmp_path_factory.mktemp("levels")
    for key in KEYS:
        write_png(folder / "in" / key, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        write_png(folder / "truth" / key, TRUTH)
    write_run(folder / "out", dict.fromkeys(KEYS, LABELS), source=folder / "in", levels=True)
    return folder


def test_the_best_cut_is_found_and_its_gain_is_that_of_images_left_out() -> None:
    scores = np.array([[0.5, 0.6, 0.4], [0.5, 0.6, 0.4], [0.5, 0.6, 0.4], [0.5, 0.2, 0.9]])
    tuning = tune(scores)
    assert tuning.best == 2
    assert [mean.mean for mean in tuning.means] == pytest.approx([0.5, 0.5, 0.525])
    # Without one of the first three images cut 2 is the best (.567), without the last one cut 1 is (.6).
    assert tuning.gain.mean == pytest.approx(np.mean([-0.1, -0.1, -0.1, -0.3]))
    assert tuning.fitted_gain == pytest.approx(0.025)


def test_tune_prints_the_command_that_recuts_to_the_best_level(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(run / "out"), str(run / "truth"), "--ignore", "", "--processes", "1"]
    assert jobs.tune.main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["levels"]["tau 0.4"]["mean"] == pytest.approx((0.5 + 1) / 2), "class 0 shares half with its segment"
    assert facts["levels"][facts["best"]]["mean"] == 1
    assert (facts["images"], facts["gain"]["mean"]) == (6, pytest.approx(0.25))
    assert facts["command"] == f"diffseg recut {run / 'out'} NEW --tau 1.13", "one merge of segments is at 1, one at 2"
    assert jobs.tune.main(words) == 0
    assert facts["command"] in "".join(capsys.readouterr().out.split("\n"))


def test_tune_needs_several_images_with_truth(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "truth" / KEYS[0], TRUTH)
    assert jobs.tune.main([str(run / "out"), str(tmp_path / "truth"), "--processes", "1"]) == 2
    assert "at least 5" in " ".join(capsys.readouterr().err.split())


def test_evaluate_prints_a_curve_over_the_levels(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(run / "out"), str(run / "truth"), "--ignore", "", "--processes", "1", "--baseline-images", "4"]
    assert jobs.evaluate.main([*words, "--json"]) == 0
    levels = {level["name"]: level for level in json.loads(capsys.readouterr().out)["levels"]}
    assert [*levels] == ["tau 0.2", "tau 0.283", "tau 0.4", "tau 0.566", "tau 0.8", "tau 1.13", "tau 1.6", "stable"]
    assert [levels[f"tau {tau}"]["segments"] for tau in (0.2, 0.4, 1.13)] == [4, 3, 2]
    assert levels["tau 1.13"]["figures"]["miou"]["mean"] == 1
    assert levels["tau 1.13"]["figures"]["miou"]["count"] == 4, "the images of the baselines"
    assert jobs.evaluate.main(words) == 0
    assert "tau 1.13" in capsys.readouterr().out


def test_exports_take_a_level(run: Path, tmp_path: Path) -> None:
    def export(*flags: str) -> int:
        return jobs.export.main([str(run / "out"), str(tmp_path / "png"), "--to", "png", "--processes", "1", *flags])

    assert export("--segments", "2") == 0
    exported = next((tmp_path / "png").rglob("0.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(exported)), TRUTH)
    assert export() == 2, "DEST holds another level"


@pytest.mark.parametrize(("level", "expected"), [(None, 3), (Cut(segments=2), 2), (Cut(tau=0.0), 4)])
def test_the_training_reader_takes_a_level(level: Any, expected: int, run: Path) -> None:
    settings = DatasetSettings(size=24, crop=1.0, flip=False, level=level)
    samples = list(LabelDataset(str(run / "out"), settings, rank=0, world_size=1))
    assert len(samples) == len(KEYS)
    for sample in samples:
        assert len(np.unique(sample["mask"].numpy())) == expected


def test_tune_finds_the_name_score_below_which_segments_are_background(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segment 0 is background in truth; its name has a score of .2, and the names of the others one of .6."""
    for key in KEYS:
        write_png(tmp_path / "truth" / key, LABELS.astype(np.uint8))
    names = dict.fromkeys(KEYS, ("dog", "dog", "cat"))
    write_run(tmp_path / "out", dict.fromkeys(KEYS, LABELS), names=names, vocabulary=("dog", "cat"))
    monkeypatch.setattr(
        score,
        "_names_of",
        lambda segments: [SegmentName(s["id"], s["name"], (0.2, 0.6, 0.6)[s["id"]]) for s in segments],
    )
    classes = json.dumps({"background": 0, "dog": 1, "cat": 2})
    words = [str(tmp_path / "out"), str(tmp_path / "truth"), "--ignore", "", "--classes", classes, "--processes", "1"]
    assert jobs.tune.main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["thresholds"]["0"]["mean"] == pytest.approx((0 + 0.5 + 1) / 3)
    assert (facts["best"], facts["thresholds"]["0.6"]["mean"]) == (0.6, 1)
    assert facts["gain"] == {"mean": pytest.approx(0.5), "half_width": pytest.approx(0), "count": 6}
    assert facts["command"] == f"diffseg recut {tmp_path / 'out'} NEW --background-below 0.6"
    assert jobs.tune.main(words) == 0
    assert facts["command"] in "".join(capsys.readouterr().out.split("\n"))


def test_a_threshold_of_names_needs_the_id_of_background(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(run / "out"), str(run / "truth"), "--processes", "1", "--classes"]
    assert jobs.tune.main([*words, '{"dog": 1}']) == 2
    assert 'the id of "background"' in " ".join(capsys.readouterr().err.split())
    assert jobs.tune.main([*words, '{"background": 0, "dog": 1}']) == 2
    assert "no names" in " ".join(capsys.readouterr().err.split())
