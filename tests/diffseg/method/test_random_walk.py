"""The random walk: invariants, planted attention, and agreement with the transition matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import permuted_columns, planted, voronoi

from diffseg.attention.neighbours import half_disc
from diffseg.method.random_walk import Flow, confident_seeds, dense_flow, local_flow, random_walk, walk

SIDE = 24


def random_attention(side: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    """Return attention of random regions with leakage and noise, float32 [B, side², side²]."""
    maps = [planted(voronoi(side, 5, seed + b), leak=0.2, noise=0.8, seed=seed + b) for b in range(batch)]
    return torch.from_numpy(np.stack(maps)).float()


def random_scores(side: int, count: int = 3, seed: int = 0, batch: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((batch, count, side, side), dtype=np.float32))


def no_seeds(scores: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(scores[:, :1], dtype=torch.bool)


def flows(attention: torch.Tensor, side: int, power: float = 2) -> dict[str, Flow]:
    return {"dense": dense_flow(attention, power), "local": local_flow(attention, (side, side), 5, power)}


def transition(attention: np.ndarray, side: int, power: float, radius: int) -> np.ndarray:
    """Compute the transition matrix by its definition in float64: symmetrise, limit, raise, normalise rows."""
    weights = (attention + attention.T) / 2
    if radius:
        rows, columns = np.divmod(np.arange(side * side), side)
        apart = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
        weights = weights * (apart < radius**2)
    weights = weights**power
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 40])
@pytest.mark.parametrize("power", [1.0, 2.0, 8.0])
def test_a_walk_without_seeds_is_a_power_of_the_transition_matrix(radius: int, power: float) -> None:
    attention, scores = random_attention(12), random_scores(12)
    matrix = transition(attention[0].double().numpy(), 12, power, radius)
    expected = scores.double().numpy().reshape(3, -1) @ np.linalg.matrix_power(matrix, 4).T
    flow = local_flow(attention, (12, 12), radius, power) if radius else dense_flow(attention, power)
    walked = walk(scores, flow, no_seeds(scores), 4)
    np.testing.assert_allclose(walked.numpy().reshape(3, -1), expected, rtol=1e-4)


@pytest.mark.parametrize("radius", [0, 5])
def test_seeds_keep_their_scores_in_every_step(radius: int) -> None:
    attention, scores = random_attention(12, 1), random_scores(12, seed=1)
    seeds = torch.from_numpy(np.random.default_rng(2).random((1, 1, 12, 12)) < 0.2)
    matrix, expected = transition(attention[0].double().numpy(), 12, 2, radius), scores[0].flatten(1).double().numpy()
    start, fixed = expected.copy(), seeds.flatten().numpy()
    for _ in range(3):
        expected = expected @ matrix.T
        expected[:, fixed] = start[:, fixed]
    flow = local_flow(attention, (12, 12), radius, 2) if radius else dense_flow(attention, 2)
    walked = walk(scores, flow, seeds, 3)
    np.testing.assert_allclose(walked[0].flatten(1).numpy(), expected, rtol=1e-4)
    assert torch.equal(walked[:, :, seeds[0, 0]], scores[:, :, seeds[0, 0]])


def test_a_radius_beyond_the_grid_gives_the_same_as_no_radius() -> None:
    attention, scores = random_attention(12, 3), random_scores(12, seed=3)
    near, dense = (random_walk(scores, attention, power=2, steps=4, radius=radius, seeds=0.5) for radius in (40, 0))
    torch.testing.assert_close(near, dense)


@pytest.mark.parametrize("form", ["dense", "local"])
def test_constant_scores_stay_and_other_scores_stay_within_their_range(form: str) -> None:
    flow = flows(random_attention(16, 4), 16)[form]
    scores = random_scores(16, 3, seed=4)
    scores[:, 1] = 0.7
    scores[:, 2] = 0
    walked = walk(scores, flow, no_seeds(scores), 4)
    torch.testing.assert_close(walked[:, 1], scores[:, 1])
    assert not walked[:, 2].any()
    assert scores[:, 0].min() <= walked[:, 0].min()
    assert walked[:, 0].max() <= scores[:, 0].max()
    assert walked[:, 0].std() < scores[:, 0].std() * 0.7, "it is a mean"


@pytest.mark.parametrize("form", ["dense", "local"])
def test_scores_do_not_spread_between_blocks_without_attention_to_each_other(form: str) -> None:
    truth = voronoi(16, 4, 5)
    flow = flows(torch.from_numpy(planted(truth, leak=0.0, noise=0.5)).float()[None], 16)[form]
    scores = torch.from_numpy(np.eye(4, dtype=np.float32)[:, truth])[None]
    torch.testing.assert_close(walk(scores, flow, no_seeds(scores), 16), scores)


def test_a_position_without_weights_keeps_its_scores() -> None:
    attention, scores = torch.zeros(1, 16, 16), random_scores(4)
    attention[0, 0, 1] = 1
    for flow in (dense_flow(attention, 2), local_flow(attention, (4, 4), 3, 2)):
        walked = walk(scores, flow, no_seeds(scores), 1)
        assert torch.equal(walked.flatten(2)[..., 2:], scores.flatten(2)[..., 2:])
        torch.testing.assert_close(walked[..., 0, 0], scores[..., 0, 1])


def with_seeds(truth: np.ndarray, share: float, seed: int) -> torch.Tensor:
    """Return scores, float32 [1, K, h, w]: 1 at a share of each region's positions (at least one), else 0."""
    generator, scores = np.random.default_rng(seed), np.zeros((truth.max() + 1, truth.size), np.float32)
    for region, maps in enumerate(scores):
        positions = np.flatnonzero(truth == region)
        maps[generator.choice(positions, max(1, round(share * len(positions))), replace=False)] = 1
    return torch.from_numpy(scores.reshape(1, -1, *truth.shape))


def mean_iou(scores: torch.Tensor, truth: np.ndarray) -> float:
    """Return the mIoU of the best proposals; a position whose scores are all 0 has no label."""
    labels = np.where(scores[0].amax(dim=0) > 0, scores[0].argmax(dim=0), -1)
    regions = range(truth.max() + 1)
    return float(
        np.mean([((labels == r) & (truth == r)).sum() / ((labels == r) | (truth == r)).sum() for r in regions])
    )


@pytest.mark.parametrize("leak", [0.1, 0.3])
def test_a_tenth_of_each_region_is_enough_to_recover_it(leak: float) -> None:
    """Use random seeds that no setting was chosen on; attention with shuffled columns recovers nothing."""
    spread, bare, shuffled = [], [], []
    for seed in range(100, 110):
        truth = voronoi(SIDE, 4, seed)
        attention, scores = planted(truth, leak=leak, noise=0.5, seed=seed), with_seeds(truth, 0.1, seed)
        for rows, into in ((attention, spread), (permuted_columns(attention, seed), shuffled)):
            rows_of_batch = torch.from_numpy(rows).float()[None]
            into.append(mean_iou(random_walk(scores, rows_of_batch, power=2, steps=4, radius=0, seeds=0.5), truth))
        bare.append(mean_iou(scores, truth))
    assert np.mean(spread) >= 0.98
    assert np.mean(spread) > np.mean(bare) + 0.5
    assert np.mean(shuffled) < 0.45


def test_a_region_with_few_seeds_survives() -> None:
    """With many seeds in one region and few in others, fixed seeds keep regions that a walk without seeds loses."""
    truth = voronoi(SIDE, 4, 120)
    many, few = with_seeds(truth, 0.5, 0), with_seeds(truth, 0.1, 0)
    scores = torch.cat([few[:, :1], many[:, 1:2], few[:, 2:]], dim=1)
    flow = dense_flow(torch.from_numpy(planted(truth, leak=0.3, noise=0.5)).float()[None], 2)
    clamped = walk(scores, flow, scores.amax(dim=1, keepdim=True) > 0, 16)
    assert mean_iou(clamped, truth) >= 0.98
    assert mean_iou(walk(scores, flow, no_seeds(scores), 16), truth) < 0.6


def test_seeds_are_the_most_confident_positions_of_each_proposal() -> None:
    scores = torch.tensor([[[0.9, 0.8, 0.5, 0.4, 0.0]], [[0.1, 0.6, 0.5, 0.5, 0.0]]])[None]
    assert confident_seeds(scores, 0.5)[0, 0, 0].tolist() == [True, False, False, True, False]
    assert confident_seeds(scores, 0.2)[0, 0, 0].tolist() == [True, True, False, True, False]
    assert confident_seeds(scores[:, :1], 0.5)[0, 0, 0].tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("radius", [0, 5])
def test_an_image_of_a_batch_walks_as_alone_and_the_arguments_are_not_changed(radius: int) -> None:
    attention, scores = random_attention(12, 6, batch=3), random_scores(12, seed=6, batch=3)
    scores[1] = 1  # ends after one step, unlike the others
    kept = attention.clone(), scores.clone()
    options = {"power": 2.0, "steps": 4, "radius": radius, "seeds": 0.5}
    together = random_walk(scores, attention, **options)
    assert torch.equal(kept[0], attention)
    assert torch.equal(kept[1], scores)
    for image in range(3):
        alone = random_walk(scores[image : image + 1], attention[image : image + 1], **options)
        torch.testing.assert_close(together[image : image + 1], alone)
    assert torch.isfinite(together).all()


def test_a_walk_ends_when_steps_change_little() -> None:
    steps = []
    scores = random_scores(12, seed=7)
    dense = dense_flow(random_attention(12, 7), 1)

    def counted(scores: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return dense(scores)

    walk(scores, counted, no_seeds(scores), 1000)
    assert 3 < len(steps) < 100


def test_a_disc_of_radius_5_has_34_offsets_as_in_affinitynet() -> None:
    half = half_disc(5, (64, 64))
    assert len(half) == 34
    assert not {(-y, -x) for y, x in half} & {(0, 0), *half}
    assert half_disc(5, (1, 3)) == [(0, 1), (0, 2)]
