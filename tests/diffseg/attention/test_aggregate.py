"""Aggregation against a float64 reference, and the weights of the presets against the numbers of both sources."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from references import aggregate_by_elements

from diffseg.attention.aggregate import aggregate, resolution_weights
from diffseg.attention.maps import Grid, SelfAttention

SD1_LAYERS = {(64, 64): 5, (32, 32): 5, (16, 16): 5, (8, 8): 1}
SDXL_LAYERS = {(64, 64): 10, (32, 32): 60}
SMALL_SD1 = {(16, 16): 5, (8, 8): 5, (4, 4): 5, (2, 2): 1}


def random_attention(layers: Mapping[Grid, int], seed: int = 0) -> SelfAttention:
    generator = torch.Generator().manual_seed(seed)
    maps = {(h, w): torch.softmax(torch.randn(2, h * w, h * w, generator=generator) * 2, dim=-1) for h, w in layers}
    return SelfAttention(maps=maps, layers=layers)


def test_paper_weighs_each_layer_by_its_side() -> None:
    weights = resolution_weights(SD1_LAYERS, "paper")
    assert [round(w, 3) for w in weights.values()] == [0.563, 0.282, 0.141, 0.014]
    assert weights[64, 64] == 320 / 568


def test_google_weighs_each_resolution_by_its_side() -> None:
    weights = resolution_weights(SD1_LAYERS, "google")
    assert [round(w, 3) for w in weights.values()] == [0.533, 0.267, 0.133, 0.067]
    assert weights[8, 8] / resolution_weights(SD1_LAYERS, "paper")[8, 8] == pytest.approx(4.7, abs=0.05)


def test_the_two_rules_diverge_on_sdxl() -> None:
    assert resolution_weights(SDXL_LAYERS, "paper")[64, 64] == 0.25
    assert resolution_weights(SDXL_LAYERS, "google")[64, 64] == pytest.approx(2 / 3)


def test_uniform_and_explicit_weights() -> None:
    assert set(resolution_weights(SD1_LAYERS, "uniform").values()) == {0.25}
    assert resolution_weights(SD1_LAYERS, {64: 3, 16: 1}) == {(64, 64): 0.75, (32, 32): 0, (16, 16): 0.25, (8, 8): 0}
    assert resolution_weights({(32, 64): 1, (16, 32): 1}, {64: 1}) == {(32, 64): 1, (16, 32): 0}


@pytest.mark.parametrize("weights", ["none", {5: 1.0}, {64: 0.0}, {64: 2.0, 8: -1.0}, None])
def test_weights_that_are_invalid_or_all_zero_are_refused(weights) -> None:
    with pytest.raises(ValueError, match="weights="):
        resolution_weights(SD1_LAYERS, weights)


@pytest.mark.parametrize("weights", ["paper", "google", "uniform", {16: 0.2, 8: 0.5, 4: 0.3}])
@pytest.mark.parametrize(
    "layers",
    [
        SMALL_SD1,
        {(12, 16): 5, (6, 8): 5, (3, 4): 5},
        {(16, 8): 10, (8, 4): 60},
        {(8, 8): 2},
        {(4, 4): 5, (16, 16): 5},
    ],
    ids=["sd1", "wide", "tall-sdxl", "single", "coarse-first"],
)
def test_aggregate_agrees_with_the_reference(layers: Mapping[Grid, int], weights) -> None:
    attention = random_attention(layers)
    shares = resolution_weights(layers, weights)
    total, grid = aggregate(attention, weights)
    assert grid == max(layers, key=lambda g: g[0] * g[1])
    for image in range(2):
        expected = aggregate_by_elements({g: m[image].numpy() for g, m in attention.maps.items()}, shares)
        np.testing.assert_allclose(total[image].numpy(), expected, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(total.sum(dim=2).numpy(), 1, atol=1e-5)
    finest = attention.maps[grid]
    overwritten, _ = aggregate(attention, weights, out=finest)
    assert overwritten is finest
    assert torch.equal(overwritten, total)


def test_a_single_weighted_resolution_is_returned_as_recorded() -> None:
    attention = random_attention(SMALL_SD1)
    total, _ = aggregate(attention, {16: 1.0})
    torch.testing.assert_close(total, attention.maps[16, 16])


def test_aggregate_leaves_recorded_maps_unchanged() -> None:
    attention = random_attention(SMALL_SD1)
    before = {grid: maps.clone() for grid, maps in attention.maps.items()}
    aggregate(attention)
    assert all(torch.equal(before[grid], maps) for grid, maps in attention.maps.items())


def test_rows_that_do_not_sum_to_one_are_normalised() -> None:
    attention = random_attention(SMALL_SD1)
    scaled = {grid: maps * 3 for grid, maps in attention.maps.items()}
    total, _ = aggregate(SelfAttention(maps=scaled, layers=SMALL_SD1))
    torch.testing.assert_close(total, aggregate(attention)[0])


def test_grids_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="5 x 5 tokens does not divide the 8 x 8 grid"):
        aggregate(random_attention({(8, 8): 1, (5, 5): 1}))
