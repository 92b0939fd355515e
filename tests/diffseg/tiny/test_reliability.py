"""The measures of confidence against brute force and simple cases, and the command that writes them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from diffseg.segmentation import IGNORE
from diffseg.tiny.evaluation.reliability import (
    FIGURES,
    GOOD,
    Predictions,
    Reliability,
    main,
    measure_quality,
    measure_reliability,
)
from diffseg.tiny.evaluation.samples import SampleChoice


def predictions(confidence: np.ndarray, quality: np.ndarray) -> Predictions:
    return Predictions(confidence=confidence, quality=quality, image=np.arange(len(confidence)) // 2)


def test_measures_agree_with_brute_force() -> None:
    rng = np.random.default_rng(0)
    quality = rng.random(60)
    confidence = np.clip(quality + rng.normal(0, 0.3, 60), 0, 1).round(1)  # with ties
    figures = measure_reliability(predictions(confidence, quality))
    assert list(figures) == list(FIGURES)
    assert figures["rank correlation"].mean == pytest.approx(spearmanr(confidence, quality).statistic)
    pairs = itertools.product(confidence[quality >= GOOD], confidence[quality < GOOD])
    assert figures["AUC"].mean == pytest.approx(np.mean([(good > bad) + (good == bad) / 2 for good, bad in pairs]))
    assert all(figure.half_width > 0 and figure.count == 30 for figure in figures.values())


def test_confidence_equal_to_the_quality_has_no_error() -> None:
    quality = np.linspace(0, 1, 41)
    figures = measure_reliability(predictions(quality, quality))
    assert [figures[name].mean for name in FIGURES] == pytest.approx([1, 1, 0, 0.25], abs=0.02)


def test_the_calibration_error_measures_overconfidence() -> None:
    quality = np.linspace(0, 0.8, 40)
    figures = measure_reliability(predictions(quality + 0.2, quality))
    assert figures["calibration error"].mean == pytest.approx(0.2)
    assert predictions(quality + 0.2, quality).bins()[0] == pytest.approx(
        (0.2 + quality[:4].mean(), quality[:4].mean())
    )


def test_constant_quality_has_no_correlation() -> None:
    figures = measure_reliability(predictions(np.linspace(0, 1, 8), np.full(8, 0.3)))
    assert np.isnan(figures["rank correlation"].mean)
    assert np.isnan(figures["AUC"].mean)
    assert figures["surer half"].mean == 0


def test_a_segment_wholly_in_void_has_no_quality() -> None:
    truth = np.array([[0, 0, 1, 1, IGNORE, IGNORE]], np.uint16)
    segmentation: Any = SimpleNamespace(
        labels=np.array([[0, 0, 1, 1, 1, 2]], np.uint16),
        confidence=0.5,
        segments=[SimpleNamespace(confidence=confidence, area=2) for confidence in (0.9, 0.8, 0.1)],
    )
    sample: Any = SimpleNamespace(load=lambda: (np.zeros((1, 6, 3), np.uint8), truth))
    predicted = measure_quality(lambda image: segmentation, [sample])["segments: confidence"]
    assert predicted.confidence.tolist() == [0.9, 0.8]
    assert predicted.quality.tolist() == [1, 1]


def test_the_command_writes_tables_and_a_plot(tmp_path: Path) -> None:
    main(Reliability(samples=SampleChoice(images=2, size=128, scenes="validation"), out=tmp_path))
    rows = json.loads((tmp_path / "reliability.json").read_text())
    assert rows[-1]["kind"] == "images"
    assert rows[-1]["count"] == 2
    assert len({row["count"] for row in rows[:-1]}) == 1, "all kinds are computed for the same segments"
    assert (tmp_path / "reliability.md").read_text().count("\n| segments: ") == len(rows) - 1
    with Image.open(tmp_path / "reliability.png") as plot:
        assert plot.width < plot.height
