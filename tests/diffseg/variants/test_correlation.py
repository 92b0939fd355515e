"""The score of quality without ground truth: brute force over all pairs of positions, and missing pairs."""

from __future__ import annotations

import numpy as np
import pytest
from planted import voronoi
from planted_variants import correlations, planted_variants, units_of

from diffseg.method.leaves import segments_on_grid
from diffseg.segmentation import IGNORE, Box
from diffseg.variants.correlation import correlations_of


def by_pairs(labels: np.ndarray, rho: np.ndarray) -> tuple[float, float]:
    """Return both correlations by a loop over the segments' pairs of positions."""
    known, within, between, areas = labels != IGNORE, [], [], []
    for segment in np.unique(labels[known]):
        inside, outside = np.flatnonzero(labels == segment), np.flatnonzero(known & (labels != segment))
        within.append(np.mean([rho[i, j] for i in inside for j in inside if i != j]))
        between.append(np.mean([rho[i, j] for i in inside for j in outside]))
        areas.append(len(inside))
    return float(np.average(within, weights=areas)), float(np.average(between, weights=areas))


def test_they_equal_a_float64_brute_force_over_all_pairs() -> None:
    mask = voronoi(9, 4, 0)
    colours = planted_variants(mask, 6, 1, seed=0)
    labels = voronoi(9, 3, 5).ravel().astype(np.uint16)  # other regions than the planted ones
    labels[:7] = IGNORE
    found = correlations_of(labels, units_of(colours).numpy())
    assert found == pytest.approx(by_pairs(labels, correlations(colours)), abs=1e-6)


def test_the_regions_of_the_variants_have_the_largest_gap() -> None:
    mask = voronoi(24, 4, 0)
    units = units_of(planted_variants(mask, 16, 1, seed=0)).numpy()

    def gap(labels: np.ndarray) -> float:
        found = correlations_of(labels.ravel(), units)
        assert found.within is not None
        assert found.between is not None
        return found.within - found.between

    assert gap(mask) == pytest.approx(0.5, abs=0.1)  # colour and noise are alike strong
    assert gap(mask) > gap(mask // 2) + 0.1
    assert gap(mask) > gap(voronoi(24, 4, 9)) + 0.1
    assert gap(np.random.default_rng(0).permutation(mask.ravel())) == pytest.approx(0, abs=0.02)


def test_positions_that_do_not_change_are_left_out() -> None:
    units = np.array([[1, 0], [1, 0], [0, 1], [0, 0]], np.float32)
    assert correlations_of(np.array([0, 0, 1, 1]), units) == (1.0, 0.0)


def test_missing_pairs_have_no_correlation() -> None:
    units = np.eye(3, dtype=np.float32)
    assert correlations_of(np.array([0, 0, 0]), units) == (0.0, None)
    assert correlations_of(np.array([0, 1, 2]), units) == (None, 0.0)
    assert correlations_of(np.array([IGNORE] * 3), units) == (None, None)


def test_positions_get_the_label_at_their_centre_and_none_outside_the_image() -> None:
    labels = np.array([[IGNORE, 1, 2, IGNORE], [IGNORE, 3, 4, IGNORE]], np.uint16)  # a centre crop
    whole, region = Box(top=0, left=0, bottom=2, right=2), Box(top=0, left=1, bottom=2, right=3)
    assert segments_on_grid(labels, (2, 2), whole, region).tolist() == [[1, 2], [3, 4]]
    letterboxed = Box(top=1, left=0, bottom=3, right=4)
    on_grid = segments_on_grid(labels, (4, 4), letterboxed, region)
    assert on_grid.tolist() == [[IGNORE] * 4, [1, 1, 2, 2], [3, 3, 4, 4], [IGNORE] * 4]
