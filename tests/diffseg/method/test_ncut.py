"""Normalised cuts: known graphs, all cuts of small graphs, and planted attention."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from planted import adjusted_rand_index, permuted_columns, planted, same_partition, voronoi

from diffseg.attention.maps import SelfAttention
from diffseg.method import ncut
from diffseg.method.decide import decide
from diffseg.method.ncut import best_cut, cut_tree, labels_at, walk_flow
from diffseg.method.proposals import scores_of
from diffseg.settings import settings_of


def random_graph(count: int, seed: int) -> np.ndarray:
    weights = np.random.default_rng(seed).random((count, count)).astype(np.float32) ** 3
    return (weights + weights.T) / 2


def blocks(*sizes: int, between: float = 0.0) -> np.ndarray:
    """Return complete graphs of these sizes in a shuffled order, with weak edges between them, as float32 weights."""
    block_of = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return np.where(block_of[:, None] == block_of[None], 1.0, between).astype(np.float32)


def cost_by_definition(affinity: np.ndarray, side: np.ndarray) -> float:
    inside = np.zeros(len(affinity), dtype=bool)
    inside[side] = True
    cut = affinity[inside][:, ~inside].astype(np.float64).sum()
    return float(cut / affinity[inside].sum() + cut / affinity[~inside].sum())


@pytest.mark.parametrize("count", [2, 3, 40, 100])
@pytest.mark.parametrize("seed", range(3))
def test_costs_agree_with_the_definition(count: int, seed: int) -> None:
    graph = random_graph(count, seed)
    first, second, cost = best_cut(graph)
    assert np.array_equal(np.sort(np.concatenate([first, second])), np.arange(count))
    assert min(len(first), len(second)) >= 1
    assert cost == pytest.approx(cost_by_definition(graph, first), rel=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_the_best_cut_of_a_small_graph_is_the_best_of_all_cuts(seed: int) -> None:
    """On two noisy groups the relaxation loses nothing, and no cut can cost less than the minimum."""
    generator = np.random.default_rng(seed)
    sizes = (int(generator.integers(3, 7)), 4)
    noisy = blocks(*sizes, between=0.2) * generator.uniform(0.5, 1.5, (sum(sizes), sum(sizes)))
    graph = ((noisy + noisy.T) / 2).astype(np.float32)
    sides = (
        np.array(side)
        for size in range(1, len(graph) // 2 + 1)
        for side in itertools.combinations(range(len(graph)), size)
    )
    assert best_cut(graph)[2] == pytest.approx(min(cost_by_definition(graph, side) for side in sides), rel=1e-5)


@pytest.mark.parametrize("sizes", [(30, 50), (70, 40, 90), (3, 4), (1, 80, 80, 80)])
def test_disconnected_graphs_are_cut_into_their_parts_at_no_cost(sizes: tuple[int, ...]) -> None:
    graph = blocks(*sizes)
    cuts = cut_tree(graph, 1e-3)
    assert [cut.cost for cut in cuts] == pytest.approx([0] * (len(sizes) - 1), abs=1e-6)
    labels = labels_at(cuts, 1e-3, len(graph))
    assert sorted(np.bincount(labels)) == sorted(sizes)
    assert all(len(np.unique(labels[row > 0])) == 1 for row in graph)


def test_the_cut_of_two_groups_costs_the_share_of_edges_between_them() -> None:
    graph = blocks(60, 60, between=0.1)
    cost = 2 * (60 * 60 * 0.1) / (60 * 60 * 1.1)
    assert len(cut_tree(graph, cost + 1e-3)) == 1
    assert cut_tree(graph, cost - 1e-3) == []


def test_the_tree_of_a_larger_threshold_contains_the_cuts_of_a_smaller_one() -> None:
    graph = walk_flow(torch.from_numpy(planted(voronoi(12, 7, 3), leak=0.2, noise=0.6)).float(), 1)
    tree, counts = cut_tree(graph, 1.0), []
    for threshold in (0.2, 0.35, 0.5, 0.7, 0.9):
        labels = labels_at(tree, threshold, len(graph))
        assert np.array_equal(labels, labels_at(cut_tree(graph, threshold), threshold, len(graph)))
        assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
        counts.append(labels.max() + 1)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    assert not labels_at(tree, 0, len(graph)).any()


def test_lanczos_and_the_dense_solution_give_the_same_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = walk_flow(torch.from_numpy(planted(voronoi(12, 2, 0), leak=0.2, noise=0.8)).float(), 1)
    cut = best_cut(graph)
    monkeypatch.setattr(ncut, "MAX_DENSE_POSITIONS", 1000)
    expected = best_cut(graph)
    assert all(np.array_equal(side, expected_side) for side, expected_side in zip(cut[:2], expected[:2], strict=True))
    assert cut[2] == expected[2]


def test_cutting_again_gives_the_same_labels() -> None:
    graph = random_graph(150, 5)
    first, second = (labels_at(cut_tree(graph, 1.2), 1.2, 150) for _ in range(2))
    assert first.max() > 3
    assert np.array_equal(first, second)


def test_walks_of_more_steps_join_positions_further_along() -> None:
    rows = torch.eye(4)[[1, 2, 3, 0]]  # each position attends to the next
    assert np.array_equal(walk_flow(rows, 1), (rows + rows.T).numpy() / 2)
    assert np.array_equal(walk_flow(rows, 2), (rows @ rows).numpy())
    assert np.array_equal(walk_flow(rows, 4), np.eye(4))


def partition(attention: np.ndarray, **settings: Any) -> np.ndarray:
    """Return labels on the grid of tokens."""
    side = int(len(attention) ** 0.5)
    maps = {(side, side): torch.from_numpy(attention).float()[None]}
    recorded = SelfAttention(maps=maps, layers={(side, side): 1})
    scores, finite = scores_of(recorded, settings_of(**settings), (1.0,), cut=True)
    assert finite.all()
    return decide(scores[0], (side, side)).labels


@pytest.mark.parametrize("options", [{}, {"ncut_steps": 3}, {"stable": True}, {"assign": "peak"}, {"kmeans": True}])
def test_planted_regions_are_recovered(options: dict[str, Any]) -> None:
    truth = voronoi(16, 6, 100)
    attention = planted(truth, leak=0.15, noise=0.5, seed=100)
    assert adjusted_rand_index(partition(attention, **options), truth) > 0.97
    shuffled = permuted_columns(attention)
    assert abs(adjusted_rand_index(partition(shuffled, **options), truth)) < 0.1


def test_regions_with_little_leakage_are_recovered_exactly() -> None:
    truth = voronoi(16, 9, 7)
    assert same_partition(partition(planted(truth, leak=0.02)), truth)


def test_uniform_attention_is_one_segment() -> None:
    assert not partition(np.full((256, 256), 1 / 256)).any()
    assert not partition(np.full((256, 256), 1 / 256), stable=True).any()


def test_an_image_of_a_batch_is_cut_as_alone_and_a_non_finite_image_scores_0() -> None:
    truths = [voronoi(12, regions, regions) for regions in (2, 5)]
    maps = torch.from_numpy(np.stack([planted(truth, leak=0.1, noise=0.3) for truth in truths])).float()
    maps = torch.cat([maps, torch.full((1, 144, 144), torch.nan)])

    def scores(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        attention = SelfAttention(maps={(12, 12): images}, layers={(12, 12): 1})
        return scores_of(attention, settings_of(), (1,), cut=True)

    together, finite = scores(maps)
    assert finite.tolist() == [True, True, False]
    assert together.shape == (3, 5, 12, 12)
    assert not together[2].any()
    for image, count in enumerate((2, 5)):
        assert torch.equal(together[image, :count], scores(maps[image : image + 1])[0][0])
        assert not together[image, count:].any()
