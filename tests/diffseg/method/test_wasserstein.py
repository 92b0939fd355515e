"""All distances and their thresholds: closed forms, metric axioms, loops over pairs, and planted regions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from planted import adjusted_rand_index, permuted_columns, planted, two_unequal_regions, voronoi
from scipy.optimize import linprog
from scipy.special import rel_entr

from diffseg.attention.maps import SelfAttention
from diffseg.method import distance as distances
from diffseg.method.calibration import calibrated_threshold, critical_leakage, metric_of
from diffseg.method.decide import decide
from diffseg.method.proposals import scores_of
from diffseg.method.wasserstein import gaussian_w2, marginal_w1, sliced_w2
from diffseg.settings import settings_of

GRID = (12, 16)
NAMES: list[Any] = ["kl", "js", "hellinger", "pearson", "wasserstein", "sliced", "gaussian"]


def random_maps(count: int, seed: int, grid: tuple[int, int] = GRID) -> torch.Tensor:
    """Return rows with a few peaks that sum to 1, float32 [count, P]."""
    generator = np.random.default_rng(seed)
    rows = generator.random((count, math.prod(grid))) ** 8
    return torch.from_numpy(rows / rows.sum(axis=1, keepdims=True)).float()


def blobs(centres: np.ndarray, sigma: float, side: int = 64) -> torch.Tensor:
    """Return Gaussians on a square grid around centres (row, column), float32 [n, P]."""
    places = np.arange(side)
    parts = np.exp(-(((places - centres[..., None]) / sigma) ** 2) / 2)
    rows = (parts[:, 0, :, None] * parts[:, 1, None, :]).reshape(len(centres), -1)
    return torch.from_numpy(rows / rows.sum(axis=1, keepdims=True)).float()


def by_pairs(name: str, p: np.ndarray, q: np.ndarray) -> float:
    """Return the distance from its definition, in float64."""
    if name == "js":
        middle = (p + q) / 2
        return float(sum(rel_entr(row, middle).sum() / 2 for row in (p, q)))
    if name == "hellinger":
        return float(((np.sqrt(p) - np.sqrt(q)) ** 2).sum() / 2)
    if name == "pearson":
        return float(1 - np.corrcoef(p, q)[0, 1])
    if name == "wasserstein":
        apart = [
            np.abs(np.cumsum(p.reshape(GRID).sum(axis=axis) - q.reshape(GRID).sum(axis=axis))).sum() for axis in (0, 1)
        ]
        return float(np.mean(apart) / math.hypot(*GRID))
    raise ValueError(name)


@pytest.mark.parametrize("name", ["js", "hellinger", "pearson", "wasserstein"])
@pytest.mark.parametrize("elements", [1, 1000, 2**20])
def test_distances_agree_with_loops_over_pairs(name: Any, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK_ELEMENTS", elements)
    p, q = random_maps(3, 1), random_maps(5, 2)
    p[0, :100] = 0
    p /= p.sum(dim=1, keepdim=True)
    expected = [[by_pairs(name, a, b) for b in q.double().numpy()] for a in p.double().numpy()]
    np.testing.assert_allclose(metric_of(name, GRID)(p, q).numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_distance_to_itself_is_zero_and_both_orders_agree(name: Any) -> None:
    p = torch.cat([random_maps(9, 3), torch.full((1, 192), 1 / 192)])
    to_itself = metric_of(name, GRID)(p, p)
    assert to_itself.min() >= 0
    assert to_itself.diagonal().max() < (
        2e-3 if name == "gaussian" else 1e-4
    )  # it is the root of a difference that cancels
    assert (to_itself + torch.eye(10)).min() > 1e-3, "different maps must have a distance"
    torch.testing.assert_close(to_itself, to_itself.T, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_a_batch_has_the_distances_that_it_has_alone(name: Any) -> None:
    p, q = random_maps(6, 4).view(2, 3, -1), random_maps(8, 5).view(2, 4, -1)
    metric = metric_of(name, GRID)
    before = p.clone(), q.clone()
    together = metric(p, q)
    for index in range(2):
        torch.testing.assert_close(together[index], metric(p[index], q[index]), atol=1e-5, rtol=1e-4)
    assert torch.equal(p, before[0])
    assert torch.equal(q, before[1])


@pytest.mark.parametrize(
    ("name", "power"), [("js", 0.5), ("hellinger", 0.5), ("wasserstein", 1), ("sliced", 1), ("gaussian", 1)]
)
def test_metrics_satisfy_the_triangle_inequality(name: Any, power: float) -> None:
    p = torch.cat([random_maps(12, 6), torch.eye(192)[::16]])
    apart = metric_of(name, GRID)(p, p).double() ** power
    detour = (apart[:, :, None] + apart[None, :, :]).amin(dim=1)  # the best intermediate map
    assert (apart <= detour + 1e-3).all()
    assert apart.max() > 0.05


def test_symmetric_kl_is_not_a_metric() -> None:
    p = torch.tensor([[0.998, 0.002], [0.5, 0.5], [0.002, 0.998]])
    apart = metric_of("kl", (1, 2))(p, p)
    assert apart[0, 2] > apart[0, 1] + apart[1, 2]


@pytest.mark.parametrize("shift", [(0, 3), (5, 0), (4, 7), (-6, 2)])
def test_transport_distances_measure_how_far_a_map_was_moved(shift: tuple[int, int]) -> None:
    start = np.array([[30.0, 28.0]])
    p, q = blobs(start, 3.0), blobs(start + shift, 3.0)
    diagonal, moved = 64 * math.sqrt(2), math.hypot(*shift)
    grid = (64, 64)
    assert marginal_w1(p, q, grid).item() * diagonal == pytest.approx((abs(shift[0]) + abs(shift[1])) / 2, rel=1e-3)
    assert gaussian_w2(p, q, grid).item() * diagonal == pytest.approx(moved, rel=1e-3)
    assert sliced_w2(p, q, grid).item() * diagonal == pytest.approx(moved / math.sqrt(2), rel=0.05)


def test_gaussians_of_any_shape_agree_with_the_closed_form() -> None:
    """Compare Gaussian maps on a grid with Bures' distance of the continuous Gaussians, from roots of matrices."""
    side, generator = 64, np.random.default_rng(1)
    places = np.stack(np.mgrid[:side, :side], axis=-1).reshape(-1, 2)
    means, covariances, maps = [], [], []
    for _ in range(5):
        mean, root = generator.uniform(26, 38, 2), generator.uniform(-2, 2, (2, 2)) + 3 * np.eye(2)
        covariance = root @ root.T
        apart = places - mean
        row = np.exp(-0.5 * np.einsum("pi,ij,pj->p", apart, np.linalg.inv(covariance), apart))
        means.append(mean)
        covariances.append(covariance)
        maps.append(row / row.sum())
    rows = torch.from_numpy(np.stack(maps)).float()
    distances_in_tokens = gaussian_w2(rows, rows, (side, side)).numpy() * side * math.sqrt(2)
    for i in range(5):
        for j in range(i):
            expected = math.sqrt(((means[i] - means[j]) ** 2).sum() + bures_squared(covariances[i], covariances[j]))
            assert distances_in_tokens[i, j] == pytest.approx(expected, rel=0.02)


def bures_squared(a: np.ndarray, b: np.ndarray) -> float:
    def root(matrix: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(matrix)
        return vectors * np.sqrt(values) @ vectors.T

    return float(np.trace(a + b - 2 * root(root(a) @ b @ root(a))))


def exact_w1(p: np.ndarray, q: np.ndarray, grid: tuple[int, int]) -> float:
    """Solve the linear program of moving p to q over a grid, at the Euclidean distance of each move."""
    places = np.stack(np.mgrid[: grid[0], : grid[1]], axis=-1).reshape(-1, 2)
    cost = np.linalg.norm(places[:, None] - places[None], axis=-1)
    count = len(places)
    leaving = np.kron(np.eye(count), np.ones((1, count)))
    arriving = np.kron(np.ones((1, count)), np.eye(count))
    solution = linprog(cost.ravel(), A_eq=np.vstack([leaving, arriving]), b_eq=np.concatenate([p, q]), method="highs")
    return float(solution.fun)


@pytest.mark.parametrize("seed", range(3))
def test_the_marginal_distance_is_a_lower_bound_of_the_exact_transport(seed: int) -> None:
    grid = (6, 6)
    p, q = random_maps(2, seed, grid).double()
    q = q / q.sum() * p.sum()
    exact = exact_w1(p.numpy(), q.numpy(), grid) / math.hypot(*grid)
    bound = marginal_w1(p[None].float(), q[None].float(), grid).item()
    assert 0.2 * exact < bound <= exact + 1e-6


@pytest.mark.parametrize("tau", [0.2, 0.9, 1.0, 1.1, 3.0])
def test_thresholds_of_all_distances_stand_for_the_same_leakage(tau: float) -> None:
    leak = critical_leakage(tau)
    assert (1 - 2 * leak) * math.log((1 - leak) / leak) == pytest.approx(tau, abs=1e-9)
    entropy = -leak * math.log(leak) - (1 - leak) * math.log(1 - leak)
    share, pair = 1 / 16, leak * (1 - leak)
    closed_forms = {
        "kl": tau,
        "js": math.log(2) - entropy,
        "hellinger": 1 - 2 * math.sqrt(pair),
        "pearson": 1 - (2 * pair - share) / (1 - 2 * pair - share),
        "wasserstein": (1 - 2 * leak) * 4 / 2 / math.hypot(16, 16),
        "gaussian": (1 - 2 * leak) * 4 / math.hypot(16, 16),
    }
    for name, expected in closed_forms.items():
        assert calibrated_threshold(tau, name) == pytest.approx(expected, rel=1e-3), name  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_thresholds_grow_with_tau(name: Any) -> None:
    thresholds = [calibrated_threshold(tau, name) for tau in (0.0, 0.3, 1.0, 2.0, 5.0, 30.0)]
    assert thresholds == sorted(thresholds)
    assert thresholds[0] == pytest.approx(0, abs=1e-6)
    assert thresholds[-1] == (30.0 if name == "kl" else math.inf)


def partition(attention: np.ndarray, side: int, **settings: Any) -> np.ndarray:
    maps = {(side, side): torch.from_numpy(attention).float()[None]}
    tau = (1.0, 1.0, 1.0)
    scores, finite = scores_of(SelfAttention(maps=maps, layers={(side, side): 1}), settings_of(**settings), tau)
    assert finite.all()
    return decide(scores[0], (side, side)).labels


@pytest.mark.parametrize("name", ["kl", "js", "hellinger", "pearson"])
def test_planted_regions_are_recovered_at_the_calibrated_threshold(name: Any) -> None:
    for seed in (100, 101):
        truth = voronoi(16, 5, seed)
        labels = partition(planted(truth, leak=0.08, noise=0.5, seed=seed), 16, distance=name)
        assert adjusted_rand_index(labels, truth) > 0.95
        shuffled = permuted_columns(planted(truth, leak=0.08, noise=0.5, seed=seed))
        assert abs(adjusted_rand_index(partition(shuffled, 16, distance=name), truth)) < 0.1


@pytest.mark.parametrize("name", ["js", "hellinger"])
def test_two_regions_merge_just_beyond_the_critical_leakage(name: Any) -> None:
    truth, critical = two_unequal_regions(), critical_leakage(1.0)
    below, beyond = (partition(planted(truth, leak=critical + d), 24, distance=name) for d in (-0.005, 0.005))
    assert (below.max(), beyond.max()) == (1, 0)


@pytest.mark.parametrize("name", NAMES)
def test_uniform_attention_is_one_segment(name: Any) -> None:
    assert not partition(np.full((256, 256), 1 / 256), 16, distance=name).any()
