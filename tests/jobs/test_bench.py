"""`diffseg bench`: the arithmetic of its figures, and each part once on something small."""

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
from jobs.benchmarks.measure import Comparison, alternate
from jobs.benchmarks.planted import planted_attention
from jobs.benchmarks.settings import NAMING_VARIANTS, VARIANTS, measure_names, measure_settings
from jobs.benchmarks.whole import bare_pass, flop_of, measure_whole


def test_ratios_are_of_the_same_turn() -> None:
    seconds = {"a": [1.0, 2.0, 30.0], "b": [2.0, 4.0, 60.0], "c": [1.0, 4.0, 15.0]}
    found = Comparison(part="p", case="c", seconds=seconds, baseline="a", per=2)
    assert (found.median("a"), found.median("c")) == (1.0, 2.0)
    assert (found.ratio("a"), found.ratio("b"), found.ratio("c")) == (1, 2, 1)
    assert found.spread("c") == (0.5, 2)


def test_variants_run_in_turns_and_every_other_turn_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    now = [0.0]
    monkeypatch.setattr("jobs.benchmarks.measure.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow() -> None:
        order.append("slow")
        now[0] += 2

    seconds = alternate({"slow": slow, "fast": lambda: order.append("fast")}, 3)
    assert order == ["slow", "fast", "slow", "fast", "fast", "slow", "slow", "fast"]
    assert seconds == {"slow": [2, 2, 2], "fast": [0, 0, 0]}


def test_the_bare_pass_is_that_of_diffusers() -> None:
    checkpoint = load_checkpoint("tiny")
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = checkpoint.vae.encode(pixels).latents * checkpoint.vae.config.scaling_factor
        expected = checkpoint.unet(latents, 300, checkpoint.context.expand(2, -1, -1)).sample
    torch.testing.assert_close(bare_pass(checkpoint, 300, pixels), expected)


def test_a_whole_pass_is_measured_by_steps() -> None:
    images = [np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)]
    found = measure_whole(load_checkpoint("tiny"), images, batch_size=2, repetitions=1)
    assert set(found.seconds) == {"bare", "ours", "bare, as loaded"}
    assert [*found.steps] == ["resize", "encode", "unet", "aggregate", "merge", "refine", "decide", "results"]
    assert 0.5 < sum(found.steps.values()) / found.median("ours") <= 1.01
    assert found.notes["parameters"] > 4e6
    assert len(found.notes["segments"]) == 2
    assert 0 < found.notes["share of that in the bare pass"] < 2


def test_every_setting_is_measured_beside_the_plain_pass() -> None:
    images = [np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)]
    checkpoint = dataclasses.replace(load_checkpoint("tiny"), resolution=64)
    found = measure_settings(checkpoint, images, repetitions=1)
    assert set(found.seconds) == {"plain", *VARIANTS} == set(found.notes["segments"])
    assert found.ratio("plain") == 1


def test_names_and_walks_are_measured_beside_the_pass_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "TOKENS_64", 64)
    images = [np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)]
    found = measure_names(load_checkpoint("tiny-text", text=True), images, repetitions=1)
    assert set(found.seconds) == {"plain", *NAMING_VARIANTS}


def test_operations_are_counted() -> None:
    left, right = torch.ones(10, 20), torch.ones(20, 30)
    assert flop_of(lambda: left @ right) == 2 * 10 * 20 * 30


def test_formulas_element_by_element_give_our_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "ANCHORS", 4)  # 16 take as long as all other tests of the bench
    monkeypatch.setitem(PRESETS, "google", PRESETS["google"].with_values(anchors_per_side=4))
    maps = planted_attention(4, merging.SIDES)
    for side, heads in maps.items():
        assert (heads.shape, heads.dtype) == ((2, side**2, side**2), np.float32)
        np.testing.assert_allclose(heads.sum(axis=-1), 1, rtol=1e-4)
    found = merging.measure_merging(regions=4, repetitions=1, reference=None)
    assert found.notes["agreement"] == {"plain": 1.0}
    assert found.notes["segments"] == 4


def test_agreement_knows_no_numbers() -> None:
    labels = np.array([[0, 0, 1, 1]])
    assert merging.agreement(labels, np.array([[5, 5, 3, 3]])) == 1
    assert merging.agreement(labels, np.array([[5, 5, 5, 3]])) == 0.75


def test_a_reference_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a checkout of google/diffseg"):
        merging.load_reference(tmp_path)
    (tmp_path / "diffseg").mkdir()
    (tmp_path / "diffseg" / "segmentor.py").write_text("import a_module_that_is_nowhere")
    with pytest.raises(ValueError, match="needs tensorflow and scikit-learn"):
        merging.load_reference(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--parts", "whole,speed"], "speed; expected some of whole, merging, settings, names, pipeline, growth"),
        (["--dtypes", "float8"], "float8; expected some of float32"),
        (["--batch-sizes", "1,0"], "expected whole numbers from 1"),
        (["--repetitions", "0"], "expected whole numbers from 1"),
        (["--parts", "whole", "--images", "nowhere"], "expected JPEG or PNG files"),
    ],
)
def test_what_cannot_be_measured_is_refused(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(flags) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_pipeline_and_a_loop_label_the_same_photographs(
    tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    command = ["--parts", "pipeline", "--images", str(tmp_path), "--repetitions", "1", "--json"]
    assert bench.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["cores"] >= 1
    (comparison,) = found["comparisons"]
    assert comparison["per"] == 3
    assert comparison["medians"]["pipeline"] > 0
    assert comparison["ratios"]["loop"] == 1
