"""Anchors, merging and k-means: closed forms, invariances, and element-wise computation in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import (
    CRITICAL_LEAK,
    adjusted_rand_index,
    permuted_columns,
    planted,
    region_distance,
    same_partition,
    two_unequal_regions,
    voronoi,
)
from references import kmeans_by_elements, merge_by_elements

from diffseg.method.grouping import greedy_groups
from diffseg.method.merge import AnchorLayout, Consume, anchor_axis, anchor_positions, kmeans, merge


def merged(attention: np.ndarray, tau: tuple[float, ...], *, consume: Consume = "paper", per_side: int = 6):
    side = round(len(attention) ** 0.5)
    anchors = anchor_positions((side, side), per_side)
    return proposals_of(attention, anchors, tau, consume)


def proposals_of(
    attention: np.ndarray, anchors: np.ndarray, tau: tuple[float, ...], consume: Consume = "paper"
) -> torch.Tensor:
    proposals, valid = merge(torch.from_numpy(attention).float()[None], anchors=anchors, tau=tau, consume=consume)
    return proposals[0, valid[0]]


def groups_of(close: np.ndarray, consume: Consume) -> np.ndarray:
    groups, starts = greedy_groups(torch.from_numpy(close)[None], torch.ones(1, len(close), dtype=torch.bool), consume)
    assert not groups[0, ~starts[0]].any()
    return groups[0, starts[0]].numpy()


def partition(proposals: torch.Tensor) -> np.ndarray:
    return proposals.argmax(dim=0).numpy()


@pytest.mark.parametrize("tau", CRITICAL_LEAK)
@pytest.mark.parametrize(("offset", "segments"), [(-0.005, 2), (0.005, 1)])
def test_merging_flips_at_the_critical_leakage(tau: float, offset: float, segments: int) -> None:
    mask = two_unequal_regions()
    attention = planted(mask, leak=CRITICAL_LEAK[tau] + offset)
    assert (region_distance(attention, mask) > tau) == (segments == 2)
    proposals = merged(attention, (tau,) * 3)
    assert len(proposals) == segments
    if segments == 2:
        assert same_partition(partition(proposals), mask)


@pytest.mark.parametrize("seed", range(3))
def test_planted_regions_are_recovered_and_permuted_columns_are_not(seed: int) -> None:
    mask = voronoi(24, 6, seed)
    attention = planted(mask, leak=0.05, noise=0.5, seed=seed)
    proposals = merged(attention, (1.0,) * 3, per_side=12)
    assert adjusted_rand_index(partition(proposals), mask) > 0.95
    shuffled = merged(permuted_columns(attention, seed), (1.0,) * 3, per_side=12)
    assert abs(adjusted_rand_index(partition(shuffled), mask)) < 0.02


@pytest.mark.parametrize("consume", ["paper", "google"])
def test_uniform_attention_is_one_segment(consume: Consume) -> None:
    proposals = merged(np.full((256, 256), 1 / 256), (0.9,) * 3, consume=consume)
    assert proposals.shape == (1, 256)
    torch.testing.assert_close(proposals, torch.full((1, 256), 1 / 256))


@pytest.mark.parametrize("consume", ["paper", "google"])
@pytest.mark.parametrize("tau", [(0.9,), (1.1, 0.9), (0.6, 0.6, 0.6), (0.3, 0.5, 0.8, 1.2)])
@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_elements(consume: Consume, tau: tuple[float, ...], seed: int) -> None:
    attention = planted(voronoi(16, 7, seed), leak=0.2, noise=0.7, seed=seed)
    anchors = anchor_positions((16, 16), 8)
    expected = merge_by_elements(attention, anchors, tau, consume)
    proposals = proposals_of(attention, anchors, tau, consume)
    assert 1 < len(expected) <= 64
    np.testing.assert_allclose(proposals.numpy(), expected, rtol=1e-4, atol=1e-7)


def test_consume_presets_differ_where_a_group_could_average_a_proposal_again() -> None:
    close = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=bool)
    assert groups_of(close, "paper").tolist() == [[True, True, False], [False, False, True]]
    assert groups_of(close, "google").tolist() == [[True, True, False], [False, True, True]]


def test_a_row_belongs_to_its_own_group_whatever_its_distance() -> None:
    never_close = np.zeros((3, 3), dtype=bool)
    for consume in ("paper", "google"):
        assert np.array_equal(groups_of(never_close, consume), np.eye(3, dtype=bool))


def test_more_rounds_never_give_more_proposals() -> None:
    attention = planted(voronoi(16, 9, 5), leak=0.2, noise=0.8, seed=5)
    counts = [len(merged(attention, (0.7,) * rounds, per_side=8)) for rounds in range(1, 6)]
    assert counts[0] == 64
    assert counts == sorted(counts, reverse=True)
    assert counts[1] < counts[0]


@pytest.mark.parametrize("consume", ["paper", "google"])
def test_extreme_thresholds_keep_every_row_or_merge_all(consume: Consume) -> None:
    mask = voronoi(16, 9, 2)
    without_noise = planted(mask, leak=0.1)
    everywhere = {"consume": consume, "per_side": 16}
    assert len(merged(without_noise, (1e-3,) * 3, **everywhere)) == 9, "one segment for each distinct row"
    noisy = planted(mask, leak=0.1, noise=0.5)
    torch.testing.assert_close(merged(noisy, (0.0,) * 3, **everywhere), torch.from_numpy(noisy).float())
    assert len(merged(without_noise, (1e9,) * 3, **everywhere)) == 1
    assert len(merged(without_noise, (float("inf"),) * 2, **everywhere)) == 1


def test_the_order_of_positions_makes_no_difference() -> None:
    attention = planted(voronoi(16, 6, 3), leak=0.1, noise=0.4, seed=3)
    order = np.random.default_rng(0).permutation(256)
    anchors = anchor_positions((16, 16), 8)
    new_position = np.argsort(order)
    plain = proposals_of(attention, anchors, (0.8,) * 3)
    moved = proposals_of(attention[np.ix_(order, order)], new_position[anchors], (0.8,) * 3)
    torch.testing.assert_close(moved, plain[:, torch.from_numpy(order)])


def test_flipped_attention_gives_the_flipped_partition() -> None:
    mask = voronoi(16, 6, 4)
    attention = planted(mask, leak=0.05, noise=0.3, seed=4)
    flip = np.arange(256).reshape(16, 16)[:, ::-1].ravel()
    plain = partition(merged(attention, (0.9,) * 3, per_side=16))
    flipped = partition(merged(attention[np.ix_(flip, flip)], (0.9,) * 3, per_side=16))
    assert same_partition(flipped, plain[flip])
    assert not same_partition(flipped, plain)


@pytest.mark.parametrize(
    ("tokens", "count", "layout", "expected"),
    [
        (64, 16, "google", [*range(1, 62, 4)]),
        (64, 33, "google", [*range(15, 48)]),
        (64, 20, "google", [*range(3, 61, 3)]),
        (64, 2, "google", [0, 63]),
        (64, 1, "google", [32]),
        (64, 1, "even", [32]),
        (1, 16, "even", [0]),
        (8, 16, "even", [*range(8)]),
        (8, 16, "google", [*range(8)]),
        (10, 4, "even", [0, 3, 6, 9]),
        (64, 64, "even", [*range(64)]),
    ],
)
def test_anchor_positions_along_an_axis(tokens: int, count: int, layout: AnchorLayout, expected: list[int]) -> None:
    assert anchor_axis(tokens, count, layout).tolist() == expected


@pytest.mark.parametrize("count", [2, 5, 16, 33, 63])
def test_even_anchors_reach_both_borders_in_equal_steps(count: int) -> None:
    axis = anchor_axis(64, count, "even")
    assert (axis[0], axis[-1], len(np.unique(axis))) == (0, 63, count)
    assert np.ptp(np.diff(axis)) <= 1


def test_anchors_of_a_rectangle_are_row_major() -> None:
    assert anchor_positions((4, 6), 2).tolist() == [0, 5, 18, 23]


def clusters(attention: np.ndarray, start: np.ndarray) -> torch.Tensor:
    rows, centres = (torch.from_numpy(array).float()[None] for array in (attention, start))
    refined, valid = kmeans(rows, centres, torch.ones(1, len(start), dtype=torch.bool))
    assert valid.all()
    return refined[0]


@pytest.mark.parametrize("seed", range(4))
def test_kmeans_agrees_with_lloyds_algorithm_by_elements(seed: int) -> None:
    mask = voronoi(16, 5, seed)
    attention = planted(mask, leak=0.3, noise=0.9, seed=seed)
    start = attention[np.random.default_rng(seed).permutation(256)[:6]]
    expected = kmeans_by_elements(attention, start)
    centres = clusters(attention, start)
    np.testing.assert_allclose(centres.numpy(), expected, rtol=1e-4, atol=1e-7)


def test_kmeans_drops_an_empty_cluster() -> None:
    mask = two_unequal_regions(12)
    attention = planted(mask, leak=0.1, noise=0.1)
    far = np.zeros(144)
    far[0] = 1.0
    start = np.stack([attention[0], far * 5, attention[-1]])
    centres = clusters(attention, start)
    assert len(centres) == 2
    assert torch.isfinite(centres).all()
    np.testing.assert_allclose(centres.numpy(), kmeans_by_elements(attention, start), rtol=1e-4, atol=1e-7)
    assert same_partition(partition(centres), mask)
