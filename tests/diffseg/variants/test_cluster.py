"""Clusters of positions that respond alike: planted variants, what must change nothing, and controls that must fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import adjusted_rand_index, voronoi
from planted_variants import planted_variants, units_of
from scipy.optimize import linear_sum_assignment

from diffseg.variants.cluster import cluster, join, propose_by_covariance
from diffseg.variants.record import VariantResponse

SIDE = 32


def labels_of(units: torch.Tensor, centres: torch.Tensor) -> np.ndarray:
    return (units @ centres.mT).argmax(dim=1).numpy()


def miou(labels: np.ndarray, mask: np.ndarray) -> float:
    """Return the mean IoU of the regions with the labels that are assigned to them one to one."""
    shared = np.array([[(labels == k) & (mask.ravel() == r) for k in range(labels.max() + 1)] for r in range(4)]).sum(2)
    iou = shared / (np.bincount(mask.ravel())[:, None] + np.bincount(labels) - shared)
    return float(iou[linear_sum_assignment(-iou)].sum() / 4)


@pytest.mark.parametrize(
    ("ratio", "variants", "expected"),
    [
        (3, 4, 0.99),
        (3, 8, 1.0),
        (3, 16, 1.0),
        (1, 4, 0.48),
        (1, 8, 0.95),
        (1, 16, 0.99),
        (0.5, 8, 0.41),
        (0.5, 16, 0.76),
        (0.5, 32, 0.97),
    ],
)
def test_planted_regions_are_found_as_well_as_specified(ratio: float, variants: int, expected: float) -> None:
    found = []
    for seed in range(4):
        mask = voronoi(SIDE, 4, seed)
        units = units_of(planted_variants(mask, variants, ratio, seed=seed))
        found.append(miou(labels_of(units, cluster(units, 4)), mask))
    assert np.mean(found) >= expected


@pytest.mark.parametrize("ratio", [3, 1])
def test_the_threshold_of_correlation_finds_the_number_of_regions(ratio: float) -> None:
    for seed in range(3):
        mask = voronoi(SIDE, 4, seed)
        units = units_of(planted_variants(mask, 16, ratio, seed=seed))
        centres = join(units, cluster(units, 20), 0.5)
        assert len(centres) == 4
        assert miou(labels_of(units, centres), mask) > 0.98


def test_clusters_are_joined_up_to_the_threshold_and_all_of_them_at_the_lowest() -> None:
    angles = torch.tensor([0.0, 0.1, 1.0, 1.1])
    units = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert len(join(units, units, 0.999)) == 4
    assert len(join(units, units, 0.9)) == 2
    assert len(join(units, units, -1.0)) == 1


def test_the_colours_of_one_image_alone_do_not_show_the_regions() -> None:
    mask = voronoi(SIDE, 4, 0)
    one = planted_variants(mask, 16, 1, seed=0)[0].float()
    units = torch.nn.functional.normalize(one, dim=1)
    assert miou(labels_of(units, cluster(units, 4)), mask) < 0.4


def test_positions_that_are_shuffled_in_each_variant_show_no_regions() -> None:
    mask = voronoi(SIDE, 4, 0)
    colours = planted_variants(mask, 16, 3, seed=0)
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.stack([variant[torch.randperm(len(variant), generator=generator)] for variant in colours])
    units = units_of(shuffled)
    assert miou(labels_of(units, cluster(units, 4)), mask) < 0.35


def test_a_fixed_texture_and_a_gain_of_each_position_change_nothing() -> None:
    mask = voronoi(SIDE, 4, 1)
    plain = units_of(planted_variants(mask, 16, 1, seed=1, texture=0, gains=1))
    changed = units_of(planted_variants(mask, 16, 1, seed=1, texture=5, gains=100))
    torch.testing.assert_close(changed, plain, atol=2e-5, rtol=0)
    labels, expected = (labels_of(units, cluster(units, 4)) for units in (changed, plain))
    assert adjusted_rand_index(labels, expected) > 0.99


@pytest.mark.parametrize("count", [5, "correlation"])
def test_images_are_clustered_each_by_itself_and_alike_every_time(count: int) -> None:
    masks = [voronoi(16, 3, seed) for seed in range(3)]
    units = torch.stack([units_of(planted_variants(mask, 8, 2, seed=seed)) for seed, mask in enumerate(masks)])
    response = VariantResponse(units=units, grid=(16, 16), finite=torch.ones(3, dtype=torch.bool))
    together = propose_by_covariance(response, [count] * 3, 0.5)
    assert together.min() >= 0
    assert together.max() <= 1 + 1e-6
    for image in range(3):
        alone = propose_by_covariance(response.of_images(image, image + 1), [count], 0.5)
        assert torch.equal(together[image : image + 1, : alone.shape[1]], alone)
        assert not together[image, alone.shape[1] :].any()


def test_an_image_that_does_not_respond_is_one_segment() -> None:
    response = VariantResponse(units=torch.zeros(1, 16, 8), grid=(4, 4), finite=torch.ones(1, dtype=torch.bool))
    scores = propose_by_covariance(response, ["correlation"], 0.5)
    assert torch.isfinite(scores).all()
    assert scores.argmax(dim=1).unique().numel() == 1


def test_no_matrix_of_all_pairs_of_positions_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    positions, largest = 4100, 0
    units = torch.nn.functional.normalize(torch.randn(1, positions, 24), dim=2)
    response = VariantResponse(units=units, grid=(50, 82), finite=torch.ones(1, dtype=torch.bool))

    class LargestResult(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with LargestResult():
        propose_by_covariance(response, ["correlation"], 0.5)
    assert positions * 20 <= largest < positions * 100
