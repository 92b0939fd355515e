"""The method on attention that is given: golden label maps, negative controls, shapes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import adjusted_rand_index, permuted_columns, planted_heads, same_partition, voronoi
from references import segment_by_elements

from diffseg import segment_attention
from diffseg.attention.aggregate import aggregate
from diffseg.attention.maps import SelfAttention
from diffseg.method.decide import decide
from diffseg.method.merge import anchor_positions
from diffseg.method.proposals import scores_of
from diffseg.settings import settings_of

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"
CASES = {
    1: (4, 0.02, 0.3, 0.9),
    2: (6, 0.05, 0.6, 0.9),
    3: (6, 0.1, 0.6, 1.1),
    4: (9, 0.12, 0.8, 0.9),
    5: (5, 0.1, 0.6, 0.7),
}


@pytest.mark.parametrize("kmeans", [False, True])
@pytest.mark.parametrize("seed", CASES)
def test_google_preset_agrees_with_elements_on_every_pixel(seed: int, kmeans: bool) -> None:
    regions, leak, noise, tau = CASES[seed]
    truth = voronoi(16, regions, seed)
    heads = planted_heads(truth, (16, 8, 4), leak=leak, noise=noise, seed=seed)
    anchors = anchor_positions((16, 16), 16, "google")
    expected = segment_by_elements(heads, anchors, (tau,) * 3, refine=kmeans, consume="google")
    found = segment_attention(heads, preset="google", tau=tau, kmeans=kmeans)
    assert found.shape == (128, 128)
    assert same_partition(found, expected)
    assert adjusted_rand_index(found[4::8, 4::8], truth) > 0.6, "the planted regions are what is found"


def reference_case(seed: int) -> dict[Any, Any]:
    spec = importlib.util.spec_from_file_location("planted_attention", GOLDEN / "planted_attention.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.planted(seed)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference's label maps are not beside this checkout")
@pytest.mark.parametrize("seed", range(1, 6))
def test_google_preset_agrees_with_the_released_implementation(seed: int) -> None:
    case = reference_case(seed)
    labels = np.load(GOLDEN / "reference_labels.npz")
    np.testing.assert_allclose(case[64][:, ::512, ::512], labels[f"rowsum64_{seed}"], rtol=1e-5)
    maps = {side: case[side] for side in (64, 32, 16, 8)}
    found = segment_attention(maps, preset="google", tau=case["tau"], kmeans=case["kmeans"])
    assert same_partition(found, labels[f"labels_{seed}"])


def test_permuted_attention_is_at_chance() -> None:
    truth = voronoi(16, 5, 0)
    heads = planted_heads(truth, (16,), leak=0.05, noise=0.3, seed=0)
    assert adjusted_rand_index(segment_attention(heads, tau=0.9)[4::8, 4::8], truth) > 0.9
    shuffled = {16: permuted_columns(heads[16].reshape(-1, 256)).reshape(heads[16].shape)}
    assert abs(adjusted_rand_index(segment_attention(shuffled, tau=0.9)[4::8, 4::8], truth)) < 0.05


@pytest.mark.parametrize("preset", ["default", "paper", "google"])
def test_uniform_attention_is_one_segment(preset: Any) -> None:
    maps = {side: np.full((2, side**2, side**2), side**-2, dtype=np.float32) for side in (16, 8)}
    assert not segment_attention(maps, preset=preset).any()


def test_attention_of_rectangles_and_any_size_of_the_result() -> None:
    left = (np.arange(12 * 20) % 20 < 7).astype(int)
    rows = np.where(left[:, None] == left[None, :], 1.0, 0.02)
    maps = {(12, 20): torch.from_numpy(rows / rows.sum(axis=1, keepdims=True))[None]}
    labels = segment_attention(maps, size=(90, 100))
    assert labels.shape == (90, 100)
    assert len(np.unique(labels)) == 2
    assert (labels == labels[:1]).all()
    assert np.flatnonzero(np.diff(labels[0].astype(int)))[0] == pytest.approx(35, abs=1)
    assert segment_attention(maps).shape == (96, 160)


def test_thresholds_may_be_given_for_each_round() -> None:
    heads = planted_heads(voronoi(16, 6, 1), (16, 8), leak=0.1, noise=0.3, seed=1)
    once, never, thrice = (segment_attention(heads, tau=tau).max() + 1 for tau in (0.9, (0.0, 0.0), [0.9, 0.9, 0.9]))
    assert once == thrice < 20
    assert never > 200, "nothing is merged: one segment for each position that its own row peaks at"


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        ({}, {}, "no attention maps"),
        ({4: np.ones((16, 16))}, {}, r"maps\[4\]: shape \(16, 16\); expected \[heads, 16, 16\]"),
        ({4: np.ones((1, 16, 9))}, {}, r"expected \[heads, 16, 16\]"),
        ({4: np.ones((1, 16, 16))}, {"tau": -1.0}, "tau="),
        ({4: np.ones((1, 16, 16))}, {"tau": ()}, "tau="),
        ({4: np.ones((1, 16, 16))}, {"preset": "none"}, "preset="),
        ({4: np.full((1, 16, 16), np.nan)}, {}, "not finite"),
        ({4: np.zeros((1, 16, 16))}, {}, "not finite"),
    ],
)
def test_attention_that_does_not_fit_is_refused(maps: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segment_attention(maps, **options)


def test_nearest_is_the_divergence_to_each_proposal_element_by_element() -> None:
    heads = planted_heads(voronoi(16, 5, 3), (16, 8), leak=0.1, noise=0.5, seed=3)
    maps = {
        (side, side): torch.as_tensor(value, dtype=torch.float32).mean(dim=0)[None] for side, value in heads.items()
    }
    attention = SelfAttention(maps=maps, layers=dict.fromkeys(maps, 1))
    tau = (0.9, 0.9, 0.9)
    scores, _ = scores_of(attention, settings_of("default"), tau)
    proposals, _ = scores_of(attention, settings_of("default", assign="peak"), tau)
    rows = aggregate(attention)[0][0].double()
    for proposal, score in zip(proposals[0].flatten(1).double(), scores[0].flatten(1), strict=True):
        divergence = ((proposal - rows) * (proposal.log() - rows.log())).sum(dim=1) / 2
        torch.testing.assert_close(score.double(), (-divergence).exp(), atol=1e-3, rtol=0)
    assert scores.shape[2:] == (16, 16)


def test_nearest_keeps_pixels_that_a_compact_neighbour_looks_at() -> None:
    # Position 0 looks at itself and at 1; all others look at each other evenly, so that its .4 beats their 1/15 at 1.
    rows = np.full((16, 16), 1e-6)
    rows[0, :2] = 0.6, 0.4
    rows[1:, 1:] = 1 / 15
    heads = {4: (rows / rows.sum(axis=1, keepdims=True))[None]}
    assert segment(heads, "nearest") == [0] + [1] * 15
    assert segment(heads, "peak") == [0, 0] + [1] * 14


def segment(heads: dict[int, np.ndarray], assign: str) -> list[int]:
    maps = {(side, side): torch.as_tensor(value[:1], dtype=torch.float32) for side, value in heads.items()}
    attention = SelfAttention(maps=maps, layers=dict.fromkeys(maps, 1))
    scores, _ = scores_of(attention, settings_of("default", assign=assign), (0.1, 0.1, 0.1))
    return decide(scores[0], attention.finest).labels.ravel().tolist()
