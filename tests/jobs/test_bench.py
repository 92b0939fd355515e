"""Tests of `diffseg bench`: the arithmetic of its results, and each part once on a small input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diffseg.model.checkpoint import load_checkpoint
from diffseg.settings import PRESETS
from jobs import bench
from jobs.benchmarks import merging, settings
from jobs.benchmarks.generation import ALONE, LABELLED, RECORDED, measure_generation
from jobs.benchmarks.measure import Comparison, alternate
from jobs.benchmarks.planted import planted_attention
from jobs.benchmarks.settings import (
    BESIDE_VARIANTS,
    MANY_NAMES,
    NAMING_VARIANTS,
    VARIANTS,
    measure_features,
    measure_names,
    measure_settings,
)
from jobs.benchmarks.whole import bare_pass, flop_of, measure_whole


def test_ratios_compare_variants_of_the_same_turn() -> None:
    seconds = {"a": [1.0, 2.0, 30.0], "b": [2.0, 4.0, 60.0], "c": [1.0, 4.0, 15.0]}
    comparison = Comparison(part="p", case="c", seconds=seconds, baseline="a", per=2)
    assert (comparison.median("a"), comparison.median("c")) == (1.0, 2.0)
    assert (comparison.ratio("a"), comparison.ratio("b"), comparison.ratio("c")) == (1, 2, 1)
    assert comparison.spread("c") == (0.5, 2)


def test_variants_run_in_turns_and_every_other_turn_is_reversed(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    now = [0.0]
    monkeypatch.setattr("jobs.benchmarks.measure.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow() -> None:
        order.append("slow")
        now[0] += 2

    seconds = alternate({"slow": slow, "fast": lambda: order.append("fast")}, 3)
    assert order == ["slow", "fast", "slow", "fast", "fast", "slow", "slow", "fast"]
    assert seconds == {"slow": [2, 2, 2], "fast": [0, 0, 0]}


def test_the_bare_pass_agrees_with_diffusers() -> None:
    checkpoint = load_checkpoint("tiny")
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = checkpoint.vae.encode(pixels).latents * checkpoint.vae.config.scaling_factor
        expected = checkpoint.unet(latents, 300, checkpoint.context.expand(2, -1, -1)).sample
    torch.testing.assert_close(bare_pass(checkpoint, 300, pixels), expected)


def test_part_whole_measures_steps() -> None:
    images = [np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)]
    comparison = measure_whole(load_checkpoint("tiny"), images, batch_size=2, repetitions=1)
    assert set(comparison.seconds) == {"bare", "ours", "bare, as loaded"}
    assert [*comparison.steps] == ["resize", "encode", "unet", "aggregate", "merge", "refine", "decide", "results"]
    assert min(comparison.steps.values()) > 0
    assert comparison.notes["parameters"] > 4e6
    assert len(comparison.notes["segments"]) == 2
    assert 0 < comparison.notes["share of that in the bare pass"] < 2


def test_part_settings_measures_every_setting_beside_the_plain_pass() -> None:
    images = [np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)]
    checkpoint = dataclasses.replace(load_checkpoint("tiny"), resolution=64)
    comparison = measure_settings(checkpoint, images, repetitions=1)
    assert set(comparison.seconds) == {"plain", *VARIANTS} == set(comparison.notes["segments"])
    assert comparison.ratio("plain") == 1


def test_part_features_measures_the_same_pass_with_and_without_features() -> None:
    images = [np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)]
    checkpoint = dataclasses.replace(load_checkpoint("tiny"), resolution=64)
    comparison = measure_features(checkpoint, images, repetitions=1)
    assert set(comparison.seconds) == {"plain", "features", "plain again"}
    assert comparison.ratio("plain") == 1


def test_part_names_measures_names_and_walks_beside_the_plain_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "TOKENS_64", 64)
    images = [np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)]
    comparison = measure_names(load_checkpoint("tiny-text", text=True), images, repetitions=1)
    assert set(comparison.seconds) == {"plain", *NAMING_VARIANTS, *BESIDE_VARIANTS}
    assert len(set(MANY_NAMES)) == 150


def test_part_generate_measures_images_with_and_without_recording() -> None:
    checkpoint = load_checkpoint("tiny-text", text=True, decoder=True)
    comparison = measure_generation(checkpoint, steps=2, size=64, batch_size=2, repetitions=1)
    assert set(comparison.seconds) == {ALONE, RECORDED, LABELLED}
    assert comparison.case == "tiny-text, 64 px, float32, batch 2, 2 steps"
    assert comparison.notes["images/s"] == pytest.approx(2 / comparison.seconds[LABELLED][0], abs=1e-3)
    assert comparison.notes["seconds per step"] == pytest.approx(comparison.seconds[ALONE][0] / 4, abs=1e-4)


def test_floating_point_operations_are_counted() -> None:
    left, right = torch.ones(10, 20), torch.ones(20, 30)
    assert flop_of(lambda: left @ right) == 2 * 10 * 20 * 30


def test_the_released_formulas_give_our_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "ANCHORS", 4)  # with 16, this test takes as long as all others of the file
    monkeypatch.setitem(PRESETS, "google", PRESETS["google"].with_values(anchors_per_side=4))
    maps = planted_attention(4, merging.SIDES)
    for side, heads in maps.items():
        assert (heads.shape, heads.dtype) == ((2, side**2, side**2), np.float32)
        np.testing.assert_allclose(heads.sum(axis=-1), 1, rtol=1e-4)
    comparison = merging.measure_merging(regions=4, repetitions=1, reference=None)
    assert comparison.notes["agreement"] == {"plain": 1.0}
    assert comparison.notes["segments"] == 4


def test_agreement_does_not_depend_on_the_numbers_of_segments() -> None:
    labels = np.array([[0, 0, 1, 1]])
    assert merging.agreement(labels, np.array([[5, 5, 3, 3]])) == 1
    assert merging.agreement(labels, np.array([[5, 5, 5, 3]])) == 0.75


def test_a_missing_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a checkout of google/diffseg"):
        merging.load_reference(tmp_path)
    (tmp_path / "diffseg").mkdir()
    (tmp_path / "diffseg" / "segmentor.py").write_text("import a_module_that_is_nowhere")
    with pytest.raises(ValueError, match="needs tensorflow and scikit-learn"):
        merging.load_reference(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--parts", "whole,speed"], "speed; expected some of whole, merging, settings, names, features, "),
        (["--dtypes", "float8"], "float8; expected some of float32"),
        (["--batch-sizes", "1,0"], "expected whole numbers from 1"),
        (["--repetitions", "0"], "expected whole numbers from 1"),
        (["--parts", "whole", "--images", "nowhere"], "expected JPEG or PNG files"),
    ],
)
def test_invalid_flags_are_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(flags) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_part_pipeline_measures_the_pipeline_and_a_loop_on_the_same_images(
    tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    command = ["--parts", "pipeline", "--images", str(tmp_path), "--repetitions", "1", "--json"]
    assert bench.main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["machine"]["cores"] >= 1
    (comparison,) = document["comparisons"]
    assert comparison["per"] == 3
    assert set(comparison["medians"]) == {"bare", "loop", "label", "label, one actor"}
    assert all(seconds > 0 for seconds in comparison["medians"].values())
    assert comparison["ratios"]["loop"] == 1
