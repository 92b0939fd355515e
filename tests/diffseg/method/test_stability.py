"""The threshold of each image: the most stable partition, and what choosing it gains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from planted import adjusted_rand_index as reference_index
from planted import planted, voronoi

from diffseg.attention.maps import SelfAttention
from diffseg.method.decide import decide
from diffseg.method.proposals import scores_of
from diffseg.method.stability import FACTORS, adjusted_rand_index, most_stable
from diffseg.settings import settings_of


def test_factors_go_from_half_to_double_around_one() -> None:
    assert (FACTORS[0], FACTORS[len(FACTORS) // 2], FACTORS[-1]) == (0.5, 1.0, 2.0)
    np.testing.assert_allclose(np.diff(np.log(FACTORS)), np.log(4) / 8)


@pytest.mark.parametrize("seed", range(4))
def test_the_index_agrees_with_the_definition(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.integers(0, 5, 200), generator.integers(0, 3 + seed, 200)
    b[:100] = a[:100]
    assert adjusted_rand_index(a, b) == pytest.approx(reference_index(a, b))
    assert adjusted_rand_index(a, b) == adjusted_rand_index(b, a)
    assert adjusted_rand_index(a, 4 - a) == 1


def test_the_index_of_trivial_partitions() -> None:
    whole, apart = np.zeros(6, dtype=int), np.arange(6)
    assert adjusted_rand_index(whole, whole) == adjusted_rand_index(apart, apart) == 1
    assert adjusted_rand_index(whole, apart) == 0
    assert adjusted_rand_index(np.zeros(1, dtype=int), np.zeros(1, dtype=int)) == 1


def test_the_partition_that_lasts_longest_is_chosen() -> None:
    halves, thirds, fine = np.arange(60) // 30, np.arange(60) // 20, np.arange(60) // 4
    assert most_stable([fine, thirds, thirds, thirds, halves, np.zeros(60, dtype=int)]) == 1
    assert most_stable([fine, thirds, halves, halves, halves, halves]) == 2
    assert most_stable([thirds]) == 0
    assert most_stable([halves, 1 - halves]) == 0, "the first of equally stable partitions"


def partition(truth: np.ndarray, attention: np.ndarray, tau: tuple[float, ...], **settings: Any) -> np.ndarray:
    grid = (len(truth), len(truth))
    maps = {grid: torch.from_numpy(attention).float()[None]}
    scores, _ = scores_of(SelfAttention(maps=maps, layers={grid: 1}), settings_of(**settings), tau)
    return decide(scores[0], grid).labels


def test_a_smaller_threshold_is_chosen_where_the_given_one_is_too_large() -> None:
    truth = voronoi(16, 5, 2)
    attention = planted(truth, leak=0.2, noise=0.3, seed=2)  # at least 0.83 nats between regions
    given, chosen = (partition(truth, attention, (1.6,) * 3, stable=stable) for stable in (False, True))
    assert reference_index(given, truth) < 0.7
    assert reference_index(chosen, truth) > 0.95


def test_nothing_changes_where_all_thresholds_agree() -> None:
    truth = voronoi(16, 5, 3)
    attention = planted(truth, leak=0.03)
    given, chosen = (partition(truth, attention, (0.9,) * 3, stable=stable) for stable in (False, True))
    assert np.array_equal(given, chosen)
    assert reference_index(chosen, truth) == 1
