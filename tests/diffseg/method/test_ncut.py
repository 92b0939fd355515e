"""Normalised cuts: a float64 eigensolver, all cuts of small graphs, known graphs, planted attention and features."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from planted import adjusted_rand_index, permuted_columns, planted, same_partition, voronoi

from diffseg.attention.layer_output import LayerOutput
from diffseg.attention.maps import SelfAttention
from diffseg.method.decide import decide
from diffseg.method.ncut import MAX_PARTS, cut, feature_weights, parts_on_grid, spectrum
from diffseg.method.proposals import propose, scores_of
from diffseg.settings import settings_of


def graphs(*weights: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(weights)).float()


def random_graph(count: int, seed: int) -> np.ndarray:
    weights = np.random.default_rng(seed).random((count, count)) ** 3
    return (weights + weights.T) / 2


def blocks(*sizes: int, between: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of complete graphs of these sizes in a shuffled order, with weak edges between them, and which
    graph each position belongs to."""
    block_of = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return np.where(block_of[:, None] == block_of[None], 1.0, between), block_of


def normalised(weights: np.ndarray) -> np.ndarray:
    scale = 1 / np.sqrt(weights.sum(axis=1))
    return scale[:, None] * weights * scale[None]


def cost_by_definition(weights: np.ndarray, parts: np.ndarray) -> float:
    """Return the sum over the parts of the share of its edges that a part loses, float64."""
    cost = 0.0
    for part in np.unique(parts):
        inside = parts == part
        cost += float(weights[inside][:, ~inside].sum() / weights[inside].sum())
    return cost


@pytest.mark.parametrize("steps", [1, 3])
def test_eigenvectors_agree_with_a_float64_solver_on_planted_graphs(steps: int) -> None:
    attention = [planted(voronoi(16, regions, regions), leak=0.2, noise=0.6, seed=regions) for regions in (3, 7, 12)]
    found = spectrum(graphs(*attention), steps)
    for image, rows in enumerate(attention):
        walked = np.linalg.matrix_power(rows, steps)
        values, vectors = np.linalg.eigh(normalised((walked + walked.T) / 2))
        values, vectors = values[::-1], vectors[:, ::-1]
        regions = (3, 7, 12)[image]
        np.testing.assert_allclose(found.values[image, :regions], values[:regions], atol=2e-5)
        ours, theirs = found.vectors[image, :, :regions].double().numpy(), vectors[:, :regions]
        np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-3)  # the same subspace
        np.testing.assert_allclose(ours.T @ ours, np.eye(regions), atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_the_cut_of_a_small_graph_is_the_best_of_all_cuts(seed: int) -> None:
    """On two noisy groups the relaxation loses nothing, and no cut can cost less than the minimum."""
    generator = np.random.default_rng(seed)
    sizes = (int(generator.integers(3, 7)), 4)
    noisy = blocks(*sizes, between=0.2)[0] * generator.uniform(0.5, 1.5, (sum(sizes), sum(sizes)))
    graph = (noisy + noisy.T) / 2
    second = float(spectrum(graphs(graph)).values[0, 1])
    parts = cut(spectrum(graphs(graph)), 1 - second + 1e-3)[0].numpy()
    assert len(np.unique(parts)) == 2
    sides = (np.array(side) for side in itertools.product([0, 1], repeat=len(graph)) if 0 < sum(side) < len(graph))
    assert cost_by_definition(graph, parts) == pytest.approx(min(cost_by_definition(graph, side) for side in sides))


def test_a_k_way_cut_costs_hardly_more_than_its_lower_bound() -> None:
    """No cut into K parts costs less than K minus the K largest eigenvalues."""
    attention = planted(voronoi(20, 8, 4), leak=0.3, noise=0.5)
    graph = spectrum(graphs(attention))
    parts = cut(graph, 0.7)[0].numpy()
    count = len(np.unique(parts))
    bound = count - float(np.sort(np.linalg.eigvalsh(normalised((attention + attention.T) / 2)))[-count:].sum())
    assert count == 8
    assert bound - 1e-6 <= cost_by_definition((attention + attention.T) / 2, parts) < 1.03 * bound


@pytest.mark.parametrize("sizes", [(30, 50), (70, 40, 90), (3, 4), (1, 80, 80, 80)])
def test_disconnected_graphs_are_cut_into_their_parts(sizes: tuple[int, ...]) -> None:
    weights, block_of = blocks(*sizes)
    graph = spectrum(graphs(weights))
    assert graph.values[0, : len(sizes)].tolist() == pytest.approx([1] * len(sizes), abs=1e-5)
    assert same_partition(cut(graph, 1e-3)[0].numpy(), block_of)


def test_two_groups_are_divided_from_the_cost_of_their_cut_on() -> None:
    weights, block_of = blocks(60, 60, between=0.1)
    cost = 2 * (60 * 60 * 0.1) / (60 * 60 * 1.1)
    assert same_partition(cut(spectrum(graphs(weights)), cost + 1e-3)[0].numpy(), block_of)
    assert len(cut(spectrum(graphs(weights)), cost - 1e-3).unique()) == 1


def test_a_larger_cost_gives_more_parts_up_to_the_most() -> None:
    graph = spectrum(graphs(planted(voronoi(12, 7, 3), leak=0.2, noise=0.6)))
    counts = [len(cut(graph, cost).unique()) for cost in (0.0, 0.35, 0.5, 0.8, 0.99)]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] > 6
    assert len(cut(spectrum(torch.eye(100)[None]), 0.5).unique()) == MAX_PARTS


def test_cutting_again_gives_the_same_parts_and_other_images_have_no_influence() -> None:
    images = [random_graph(150, 5), planted(voronoi(12, 5, 1), leak=0.2, noise=0.4)[:144, :144]]
    images[0] = images[0][:144, :144]
    together = cut(spectrum(graphs(*images)), 0.6)
    assert torch.equal(together, cut(spectrum(graphs(*images)), 0.6))
    for image, weights in enumerate(images):
        alone = cut(spectrum(graphs(weights)), 0.6)
        assert same_partition(together[image].numpy(), alone[0].numpy())


@pytest.mark.parametrize("weights", [np.zeros((30, 30)), np.full((30, 30), 1 / 30), np.ones((30, 30)) - np.eye(30)])
def test_a_graph_without_groups_is_one_part(weights: np.ndarray) -> None:
    graph = spectrum(graphs(weights))
    assert torch.isfinite(graph.vectors).all()
    assert len(cut(graph, 0.9).unique()) == 1


def test_walks_of_more_steps_join_positions_further_along() -> None:
    rows = torch.eye(4)[[1, 2, 3, 0]]  # each position attends to the next
    identity = torch.eye(4)[None]
    assert torch.equal(spectrum(rows[None], 1).flow(identity)[0], (rows + rows.T) / 2)
    assert torch.equal(spectrum(rows[None], 2).flow(identity)[0], rows @ rows)
    assert torch.equal(spectrum(rows[None], 4).flow(identity)[0], torch.eye(4))


def test_weights_between_features_are_those_of_diffcut() -> None:
    features = torch.randn(2, 7, 30)
    weights = feature_weights(features)
    for image in range(2):
        vectors = features[image].double().numpy()
        unit = vectors / np.linalg.norm(vectors, axis=0)
        cosine = unit.T @ unit
        expected = ((cosine - cosine.min()) / (cosine.max() - cosine.min())) ** 10
        np.testing.assert_allclose(weights[image].numpy(), expected, atol=1e-5)


def test_parts_on_a_coarse_grid_are_repeated_on_the_working_grid() -> None:
    parts = torch.tensor([[0, 1, 2, 3, 4, 5]])
    expected = torch.arange(6).view(2, 3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(parts_on_grid(parts, (2, 3), (4, 6)).view(4, 6), expected)


def partition(attention: np.ndarray, **settings: Any) -> np.ndarray:
    """Return labels on the grid of tokens."""
    side = int(len(attention) ** 0.5)
    maps = {(side, side): graphs(attention)}
    recorded = SelfAttention(maps=maps, layers={(side, side): 1})
    scores, finite = scores_of(recorded, settings_of(**settings), (1.0,), cuts=True)
    assert finite.all()
    return decide(scores[0], (side, side)).labels


OPTIONS: list[dict[str, Any]] = [
    {},
    {"ncut_steps": 3, "ncut": 0.7},
    {"stable": True},
    {"assign": "peak"},
    {"kmeans": True},
]


@pytest.mark.parametrize("options", OPTIONS)
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


@pytest.mark.parametrize("stable", [False, True])
def test_an_image_of_a_batch_is_cut_as_alone_and_a_non_finite_image_scores_0(stable: bool) -> None:
    truths = [voronoi(12, regions, regions) for regions in (2, 5)]
    maps = graphs(*(planted(truth, leak=0.1, noise=0.3) for truth in truths))
    maps = torch.cat([maps, torch.full((1, 144, 144), torch.nan)])

    def scores(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        attention = SelfAttention(maps={(12, 12): images}, layers={(12, 12): 1})
        return scores_of(attention, settings_of(stable=stable), (1,), cuts=True)

    together, finite = scores(maps)
    assert finite.tolist() == [True, True, False]
    assert not together[2].any()
    for image, truth in enumerate(truths):
        labels = together[image].argmax(dim=0).numpy()
        assert adjusted_rand_index(labels, truth) > 0.99
        assert same_partition(labels, scores(maps[image : image + 1])[0][0].argmax(dim=0).numpy())


def test_features_of_another_grid_are_cut_and_the_attention_draws_the_borders() -> None:
    fine = np.kron(voronoi(6, 3, 2), np.ones((2, 2), dtype=int))
    coarse = torch.from_numpy(fine[::2, ::2].ravel())
    features = torch.nn.functional.one_hot(coarse, 3).T[None].float() + 0.05 * torch.randn(1, 3, 36)
    fine[5, 3:6] = 0  # detail that the coarse grid does not have
    attention = graphs(planted(fine, leak=0.05))
    output = LayerOutput(maps=features.half(), grid=(6, 6))
    finite = torch.ones(1, dtype=torch.bool)
    for settings in (settings_of(), settings_of(stable=True)):
        scores = propose(attention, finite, (12, 12), settings, (1.0,), cuts=True, layer_output=output)
        assert same_partition(scores[0].argmax(dim=0).numpy(), fine)
