"""Attention for a CLIP's last layer: ProxyCLIP's formula, exact on planted similarities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from planted import planted, voronoi

from diffseg.method.clip_guide import guide_of_attention, guide_of_features

SIDE = 6
GRID = (SIDE, SIDE)


def regions() -> torch.Tensor:
    return torch.from_numpy(voronoi(SIDE, 3, 0)).flatten()


@pytest.mark.parametrize(("shift", "scale"), [(1.2, 3.0), (1.0, 10.0), (0.0, 1.0)])
def test_attention_by_features_is_proxyclips_formula(shift: float, scale: float) -> None:
    """Equations 4 to 6 in float64, position by position; the mean is over all pairs of the image."""
    features = torch.randn(2, 5, SIDE * SIDE) + 0.5
    attention = guide_of_features({GRID: features}, GRID, shift=shift, scale=scale).double().numpy()
    for image in range(2):
        unit = features[image].double().numpy()
        unit /= np.linalg.norm(unit, axis=0)
        similarity = unit.T @ unit
        term = (similarity - shift * similarity.mean()) * scale
        weights = np.where(term < 0, 0, np.exp(term))
        np.testing.assert_allclose(attention[image], weights / weights.sum(axis=1, keepdims=True), atol=1e-5)


def test_planted_features_confine_attention_to_their_region() -> None:
    """Within a region all features are the same, and between regions orthogonal: attention is uniform in a region."""
    mask = regions()
    features = F.one_hot(mask, 3).T.float()[None] * torch.rand(1, 1, SIDE * SIDE).add(0.1)
    same = (mask[:, None] == mask).float()
    attention = guide_of_features({GRID: features}, GRID, shift=1.2, scale=3)
    torch.testing.assert_close(attention[0], same / same.sum(dim=1, keepdim=True))


def test_similarities_of_several_resolutions_are_averaged() -> None:
    fine, coarse = torch.randn(1, 4, 36), torch.randn(1, 7, 9)
    upsampled = F.interpolate(coarse.unflatten(2, (3, 3)), GRID, mode="bilinear").flatten(2)
    cosines = [F.normalize(maps, dim=1).transpose(1, 2) @ F.normalize(maps, dim=1) for maps in (fine, upsampled)]
    joined = guide_of_features({GRID: fine, (3, 3): coarse}, GRID, shift=0, scale=2)
    mean = (cosines[0] + cosines[1]) / 2
    kept = (mean >= 0) | torch.eye(36, dtype=torch.bool)
    torch.testing.assert_close(joined, (2 * mean).masked_fill(~kept, -torch.inf).softmax(dim=-1))


def test_planted_attention_without_a_leak_is_uniform_within_each_region() -> None:
    mask = regions()
    attention = torch.from_numpy(planted(mask.view(GRID).numpy(), leak=0.2)).float()[None]
    same = (mask[:, None] == mask).float()
    guide = guide_of_attention(attention, shift=1.2, scale=3)
    torch.testing.assert_close(guide[0], same / same.sum(dim=1, keepdim=True))


def test_attention_is_its_own_guide_without_a_threshold_and_with_power_one() -> None:
    attention = torch.rand(2, 20, 20).softmax(dim=-1)
    torch.testing.assert_close(guide_of_attention(attention, shift=0, scale=1), attention)
    cubed = attention.double() ** 3
    cubed = torch.where(attention >= 1.2 / 20, cubed, 0)
    cubed = torch.where(torch.eye(20, dtype=torch.bool), attention.double() ** 3, cubed)
    expected = (cubed / cubed.sum(dim=-1, keepdim=True)).float()
    torch.testing.assert_close(guide_of_attention(attention, shift=1.2, scale=3), expected)


@pytest.mark.parametrize("shift", [0.0, 1.2, 50.0])
def test_every_row_sums_to_one_whatever_the_threshold_leaves_out(shift: float) -> None:
    """Where all other positions are left out a position keeps itself, and images that are not finite are harmless."""
    attention = torch.rand(3, 16, 16).softmax(dim=-1)
    attention[1] = 0
    guide = guide_of_attention(attention, shift=shift, scale=3)
    torch.testing.assert_close(guide.sum(dim=-1), torch.ones(3, 16))
    features = torch.randn(3, 4, 16)
    features[1] = torch.nan
    guide = guide_of_features({(4, 4): features}, (4, 4), shift=shift, scale=3)
    torch.testing.assert_close(guide.sum(dim=-1), torch.ones(3, 16))
    alone = guide_of_features({(4, 4): features[2:]}, (4, 4), shift=shift, scale=3)
    torch.testing.assert_close(guide[2:], alone)
