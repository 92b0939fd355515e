"""Average linkage of leaves: against a float64 brute force, as a tree, and with the run's segments as one cut."""

from __future__ import annotations

import numpy as np
import pytest
from planted import planted, voronoi
from references import symmetric_kl_by_elements

from diffseg.method.linkage import average_linkage, link, rounded


def brute_force(distances: np.ndarray, weights: np.ndarray) -> list[tuple[frozenset[int], frozenset[int], float]]:
    """Merge the groups of leaves with the smallest mean distance, which is computed from all pairs of leaves anew."""
    groups = [frozenset([leaf]) for leaf in range(len(weights))]
    merges = []

    def mean(a: frozenset[int], b: frozenset[int]) -> float:
        total = sum(weights[i] * weights[j] for i in a for j in b)
        return sum(weights[i] * weights[j] * distances[i, j] for i in a for j in b) / total

    while len(groups) > 1:
        pairs = [(a, b) for i, a in enumerate(groups) for b in groups[i + 1 :]]
        a, b = min(pairs, key=lambda pair: mean(*pair))
        merges.append((a, b, mean(a, b)))
        groups = [group for group in groups if group not in (a, b)] + [a | b]
    return merges


def planted_leaves(seed: int, count: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Return distances between the mean rows of planted regions, float64 [K, K], and the sizes of the regions."""
    regions = voronoi(14, count, seed)
    attention = planted(regions, leak=0.2, noise=0.5, seed=seed)
    rows = np.stack([attention[regions.ravel() == region].mean(axis=0) for region in range(count)])
    return symmetric_kl_by_elements(rows, rows), np.bincount(regions.ravel()).astype(np.float64)


@pytest.mark.parametrize("seed", range(4))
def test_the_linkage_of_planted_attention_is_that_of_a_brute_force(seed: int) -> None:
    distances, weights = planted_leaves(seed)
    group = {leaf: frozenset([leaf]) for leaf in range(len(weights))}
    for (a, b, height), (first, second, expected) in zip(
        average_linkage(distances, weights), brute_force(distances, weights), strict=True
    ):
        assert {group[a], group[b]} == {first, second}
        assert height == pytest.approx(expected, rel=1e-10)
        group[a] = group[a] | group[b]


def members_of(pairs: np.ndarray, leaves: int) -> list[frozenset[int]]:
    nodes = [frozenset([leaf]) for leaf in range(leaves)]
    for a, b in pairs.tolist():
        assert not nodes[a] & nodes[b]
        nodes.append(nodes[a] | nodes[b])
    return nodes


@pytest.mark.parametrize("seed", range(4))
def test_merges_are_a_tree_whose_heights_never_fall_and_whose_cuts_are_partitions(seed: int) -> None:
    distances, weights = planted_leaves(seed)
    segment_of_leaf = np.array([0, 0, 0, 1, 2, 2, 3, 3, 3])
    threshold = float(np.median(distances[distances > 0]))
    pairs, heights = link(distances, weights, segment_of_leaf, threshold)
    nodes = members_of(pairs, len(weights))
    assert len(pairs) == len(weights) - 1
    assert nodes[-1] == frozenset(range(len(weights)))
    assert len(np.unique(pairs)) == pairs.size, "every node but the root has one parent"
    assert (pairs < len(weights) + np.arange(len(pairs))[:, None]).all(), "children come before their parent"
    assert (np.diff(heights) >= 0).all()
    for merges in range(len(pairs) + 1):
        used = set(pairs[:merges].ravel().tolist())
        parts = [nodes[node] for node in range(len(weights) + merges) if node not in used]
        assert sorted(leaf for part in parts for leaf in part) == [*range(len(weights))]
    below = int((heights < np.float32(threshold)).sum())
    used = set(pairs[:below].ravel().tolist())
    at_threshold = {nodes[node] for node in range(len(weights) + below) if node not in used}
    assert at_threshold == {frozenset(np.flatnonzero(segment_of_leaf == segment)) for segment in range(4)}


def test_a_single_leaf_has_no_merges() -> None:
    pairs, heights = link(np.zeros((1, 1)), np.ones(1), np.zeros(1, int), 0.4)
    assert pairs.shape == (0, 2)
    assert heights.shape == (0,)


def test_heights_have_eleven_significant_bits() -> None:
    for height in (0.4, 1e-6, 17.3, 0.0):
        assert float(rounded(height)) == pytest.approx(height, rel=2**-11)
        assert np.float16(rounded(height)) == rounded(height) or height < 1e-4
    assert rounded(float("inf")) == np.inf
