"""Symmetric KL by matrix products agrees with element-wise computation in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import CRITICAL_LEAK, planted, region_distance, two_unequal_regions
from references import symmetric_kl_by_elements

from diffseg.method.distance import symmetric_kl


def distributions(count: int, positions: int, *, sharpness: float, seed: int) -> torch.Tensor:
    """Return random rows that sum to 1, float32 [count, positions]."""
    logits = np.random.default_rng(seed).standard_normal((count, positions)) * sharpness
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return torch.from_numpy(exponentials / exponentials.sum(axis=1, keepdims=True)).float()


@pytest.mark.parametrize("sharpness", [0.1, 1, 3, 10])
def test_it_agrees_with_elements(sharpness: float) -> None:
    p = distributions(7, 256, sharpness=sharpness, seed=1)
    q = distributions(11, 256, sharpness=sharpness, seed=2)
    expected = symmetric_kl_by_elements(p.numpy(), q.numpy())
    np.testing.assert_allclose(symmetric_kl(p, q).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_it_is_the_mean_of_both_directions_and_not_their_sum() -> None:
    p, q = torch.tensor([[0.75, 0.25]]), torch.tensor([[0.25, 0.75]])
    assert symmetric_kl(p, q).item() == pytest.approx(0.5 * np.log(3), abs=1e-6)


def test_the_distance_to_itself_is_zero_and_both_orders_agree() -> None:
    p = distributions(20, 256, sharpness=3, seed=1)
    distances = symmetric_kl(p, p)
    assert distances.diagonal().max() < 1e-4
    assert (distances + torch.eye(20)).min() > 1e-2, "different rows must have a distance"
    torch.testing.assert_close(distances, distances.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(distances, symmetric_kl(p, p.clone()), rtol=1e-5, atol=1e-5)


def test_zeros_give_finite_distances() -> None:
    p = torch.eye(4).repeat(1, 2) / 2
    distances = symmetric_kl(p, p)
    assert torch.isfinite(distances).all()
    assert distances.diagonal().max() < 1e-5
    np.testing.assert_allclose(distances.numpy(), symmetric_kl_by_elements(p.numpy(), p.numpy()), atol=1e-4)


def test_the_arguments_are_not_changed() -> None:
    p, q = distributions(3, 16, sharpness=1, seed=1), distributions(4, 16, sharpness=1, seed=2)
    before = p.clone(), q.clone()
    symmetric_kl(p, q)
    assert torch.equal(p, before[0])
    assert torch.equal(q, before[1])


@pytest.mark.parametrize(("tau", "leak"), CRITICAL_LEAK.items())
def test_two_regions_have_the_distance_of_the_closed_form(tau: float, leak: float) -> None:
    closed_form = (1 - 2 * leak) * np.log((1 - leak) / leak)
    assert closed_form == pytest.approx(tau, abs=5e-3)
    mask = two_unequal_regions()
    attention = planted(mask, leak=leak)
    assert region_distance(attention, mask) == pytest.approx(closed_form, abs=1e-12)
    rows = torch.from_numpy(attention[[0, -1]]).float()
    assert symmetric_kl(rows[:1], rows[1:]).item() == pytest.approx(closed_form, abs=1e-4)
