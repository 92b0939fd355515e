"""Bootstrap intervals: their width, their count, and statistics that are NaN in some resamples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from diffseg.scoring.bootstrap import bootstrap


def test_the_interval_of_a_mean_shrinks_with_the_root_of_the_count() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, (400, 1))
    (interval,) = bootstrap(values, lambda sums: sums / len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.count == 400
    assert interval.half_width == pytest.approx(1.96 * 0.1 / 20, rel=0.15)
    assert bootstrap(values, lambda sums: sums / len(values)) == [interval]


def test_sparse_features_give_the_same_intervals() -> None:
    values = np.random.default_rng(0).random((30, 4)).round()
    assert bootstrap(sparse.csr_array(values), lambda sums: sums / 30) == bootstrap(values, lambda sums: sums / 30)


def test_resamples_with_nan_are_left_out_of_the_interval() -> None:
    values = np.array([[0.0], [1.0], [1.0]])
    (interval,) = bootstrap(values, lambda sums: np.where(sums > 0, 1.0, np.nan))
    assert (interval.mean, interval.half_width) == (1, 0)
