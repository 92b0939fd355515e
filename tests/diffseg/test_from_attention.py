"""The method on attention that the caller provides: golden label maps, negative controls, shapes."""

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
def test_google_preset_agrees_with_the_reference_on_every_pixel(seed: int, kmeans: bool) -> None:
    regions, leak, noise, tau = CASES[seed]
    ground_truth = voronoi(16, regions, seed)
    heads = planted_heads(ground_truth, (16, 8, 4), leak=leak, noise=noise, seed=seed)
    anchors = anchor_positions((16, 16), 16, "google")
    expected = segment_by_elements(heads, anchors, (tau,) * 3, refine=kmeans, consume="google")
    labels = segment_attention(heads, preset="google", tau=tau, kmeans=kmeans)
    assert labels.shape == (128, 128)
    assert same_partition(labels, expected)
    assert adjusted_rand_index(labels[4::8, 4::8], ground_truth) > 0.6, "the planted regions are not recovered"


def reference_case(seed: int) -> dict[Any, Any]:
    spec = importlib.util.spec_from_file_location("planted_attention", GOLDEN / "planted_attention.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.planted(seed)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the label maps of the reference beside this checkout")
@pytest.mark.parametrize("seed", range(1, 6))
def test_google_preset_agrees_with_the_released_implementation(seed: int) -> None:
    case = reference_case(seed)
    reference = np.load(GOLDEN / "reference_labels.npz")
    np.testing.assert_allclose(case[64][:, ::512, ::512], reference[f"rowsum64_{seed}"], rtol=1e-5)
    maps = {side: case[side] for side in (64, 32, 16, 8)}
    labels = segment_attention(maps, preset="google", tau=case["tau"], kmeans=case["kmeans"])
    assert same_partition(labels, reference[f"labels_{seed}"])


def test_segments_of_permuted_attention_are_at_chance() -> None:
    ground_truth = voronoi(16, 5, 0)
    heads = planted_heads(ground_truth, (16,), leak=0.05, noise=0.3, seed=0)
    assert adjusted_rand_index(segment_attention(heads, tau=0.9)[4::8, 4::8], ground_truth) > 0.9
    shuffled = {16: permuted_columns(heads[16].reshape(-1, 256)).reshape(heads[16].shape)}
    assert abs(adjusted_rand_index(segment_attention(shuffled, tau=0.9)[4::8, 4::8], ground_truth)) < 0.05


@pytest.mark.parametrize("preset", ["default", "paper", "google"])
def test_uniform_attention_is_one_segment(preset: Any) -> None:
    maps = {side: np.full((2, side**2, side**2), side**-2, dtype=np.float32) for side in (16, 8)}
    assert not segment_attention(maps, preset=preset).any()


def test_grids_may_be_rectangles_and_the_result_any_size() -> None:
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
    single, zero, listed = (segment_attention(heads, tau=tau).max() + 1 for tau in (0.9, (0.0, 0.0), [0.9, 0.9, 0.9]))
    assert single == listed < 20
    assert zero > 200, "thresholds of 0 merge nothing: each position where its own row peaks is a segment"


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
def test_invalid_attention_is_refused(maps: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segment_attention(maps, **options)


def test_nearest_scores_are_the_divergence_to_each_proposal() -> None:
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


def test_nearest_keeps_pixels_that_a_compact_neighbour_attends_to() -> None:
    # Position 0 attends to itself and to 1. All others attend to each other evenly, so at 1 its .4 beats their 1/15.
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


def test_given_attention_can_be_cut_and_walked() -> None:
    blocks = torch.block_diag(*[torch.full((32, 32), 1 / 32)] * 2) * 0.98 + 0.01 / 32
    maps = {8: (blocks / blocks.sum(dim=1, keepdim=True)).expand(2, 64, 64)}
    expected = np.repeat([0, 1], 32)[:, None].repeat(64, 1)
    for method in ("diffseg", "ncut", ("ncut", "walk"), "diffseg,walk"):
        labels = segment_attention(maps, method=method)
        assert (labels == labels[0, 0]).mean() == 0.5, method
        assert ((labels == labels[0, 0]) == (expected == 0)).all(), method
    for method, message in (
        ("diffseg,par", "stage par reads"),
        ("cross", "stage cross reads"),
        ("walk", "first stage"),
    ):
        with pytest.raises(ValueError, match=message):
            segment_attention(maps, method=method)
