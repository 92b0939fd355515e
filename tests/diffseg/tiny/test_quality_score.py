"""The score of quality without ground truth is compared with the true one: closed forms, and a label map of a scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffseg.tiny.evaluation import reliability
from diffseg.tiny.evaluation.quality_score import (
    ImageScores,
    image_scores,
    methods_table,
    report,
    rows_of_set,
    segmenters,
)
from diffseg.tiny.evaluation.samples import SampleChoice, sample_sets, scene_samples
from diffseg.tiny.recipe.export import CHECKPOINT


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability, "ROUNDS", 5)


def scores_of(confidence: float, gap: float, quality: float) -> ImageScores:
    return ImageScores(
        confidence=confidence, within=gap + 0.1, between=0.1, segments=2, covering=quality, miou=quality / 2
    )


def test_a_score_in_the_order_of_the_truth_correlates_fully_and_one_in_reverse_order_not_at_all() -> None:
    rows = rows_of_set("planted", [scores_of(0.9 - 0.1 * i, 0.1 * i, 0.2 * i) for i in range(4)])
    measures = {(row.score, row.truth): row.measures for row in rows}
    gap, confidence = (measures[name, "covering"] for name in ("within_rho − between_rho", "confidence"))
    assert gap["rank correlation"].mean == pytest.approx(1)
    assert confidence["rank correlation"].mean == pytest.approx(-1)
    assert gap["surer half"].mean == pytest.approx(0.2)  # the mean of .4 and .6 beside that of 0, .2, .4 and .6
    assert measures["within_rho − between_rho", "miou"]["surer half"].mean == pytest.approx(0.1)
    text = report(rows)
    assert "### planted" in text
    assert "| confidence" in text
    assert "-1.000" in text


def test_both_together_predict_what_each_predicts_in_part() -> None:
    generator = np.random.default_rng(0)
    quality = generator.random(60)
    noisy = quality + 0.5 * generator.standard_normal((2, 60))
    rows = rows_of_set("planted", [scores_of(*values) for values in zip(*noisy, quality, strict=True)])
    of = {row.score: row.measures["rank correlation"].mean for row in rows if row.truth == "covering"}
    both = of["both: mean rank of confidence and the gap"]
    assert both > max(of["confidence"], of["within_rho − between_rho"])


def test_an_image_has_scores_with_and_without_ground_truth() -> None:
    methods = segmenters(CHECKPOINT, variants=2, resolution=64)
    (sample,) = scene_samples([0], 64)
    (scores,) = image_scores(methods, [sample])
    for name, segmenter in methods.items():
        found, of_method = segmenter(sample.load()[0]), scores[name]
        assert of_method.confidence == found.confidence
        assert (of_method.within, of_method.between) == (found.within_rho or 0, found.between_rho or 0)
        assert 0 < of_method.covering <= 1
        assert 0 < of_method.miou <= 1
    table = methods_table([scores, scores])
    assert f"{scores['default'].covering:.3f} |" in table
    assert table.count("±") == 2 * (len(methods) - 1)


def test_sets_of_photographs_are_cut_to_a_number(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "voc" / folder).mkdir(parents=True)
        for number in range(5):
            Image.new("L", (8, 8)).save(tmp_path / "voc" / folder / f"{number}.png")
    choice = SampleChoice(images=0, photographs=tmp_path, half="held-out", per_set=1)
    ((name, samples),) = sample_sets(choice).items()
    assert name == "held-out half of voc, 20 classes and background: 1 images"
    assert [sample.name for sample in samples] == ["1"]
