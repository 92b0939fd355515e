"""Pairs of positions: their choice, the losses compared with loops over pairs, and their ROC AUC."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import voronoi

from diffseg.affinity.features import neighbour_affinity
from diffseg.affinity.pairs import (
    FLOOR,
    UNKNOWN,
    choose_pairs,
    half_square,
    labels_on_grid,
    neighbour_loss,
    pair_loss,
    roc_auc,
)

SIDE = 16


def test_chosen_pairs_are_near_known_and_balanced() -> None:
    labels = voronoi(SIDE, 3, 1)
    labels[3:6] = UNKNOWN
    first, second, same_segment = choose_pairs(labels, 0)
    flat = labels.ravel()
    assert (flat[first] >= 0).all()
    assert (flat[second] >= 0).all()
    assert np.array_equal(flat[first] == flat[second], same_segment)
    assert same_segment.mean() == 0.5
    apart = np.abs(np.stack(np.divmod(first, SIDE)) - np.stack(np.divmod(second, SIDE)))
    assert apart.max() == 8
    again = choose_pairs(labels, 0)
    assert all(np.array_equal(a, b) for a, b in zip(again, (first, second, same_segment), strict=True))
    assert len(choose_pairs(np.zeros((SIDE, SIDE), int), 0)[0]) == 0, "one label has no pair of different segments"
    assert len(half_square(8)) == (17 * 17 - 1) // 2


def test_pair_loss_agrees_with_a_loop() -> None:
    generator = np.random.default_rng(0)
    affinity, pair_class = generator.random(200), generator.integers(-1, 2, 200)
    same = [1 - w for w, c in zip(affinity, pair_class, strict=True) if c == 1]
    different = [w for w, c in zip(affinity, pair_class, strict=True) if c == 0]
    loss = pair_loss(torch.from_numpy(affinity), torch.from_numpy(pair_class))
    expected = sum(same) / len(same) / 2 + sum(different) / len(different) / 2
    assert float(loss) == pytest.approx(expected, abs=1e-12)


def test_pair_loss_is_zero_for_perfect_affinity_and_does_not_depend_on_unknown_pairs() -> None:
    pair_class = torch.tensor([1, 0, 1, UNKNOWN, 0, UNKNOWN])
    assert pair_loss((pair_class == 1).double(), pair_class) == 0
    weights = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for index in range(6):
        moved = weights.clone()
        moved[index] += 1e-6
        slope = float(pair_loss(moved, pair_class) - pair_loss(weights, pair_class)) / 1e-6
        assert (abs(slope) > 0.1) == (pair_class[index] != UNKNOWN)


@pytest.mark.parametrize("background", [False, True])
def test_neighbour_loss_agrees_with_a_double_loop(background: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    embedded = torch.rand(2, 6, 7, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1 if background else 1, 4, (2, 7, 8), generator=generator)
    terms: dict[str, list[float]] = {"background": [], "label": [], "apart": []}
    positions = [(y, x) for y in range(7) for x in range(8)]
    for image in range(2):
        for number, (y, x) in enumerate(positions):
            for j, i in positions[number + 1 :]:
                first, second = int(labels[image, y, x]), int(labels[image, j, i])
                if (y - j) ** 2 + (x - i) ** 2 >= 25 or min(first, second) < 0:
                    continue
                weight = np.exp(-np.abs((embedded[image, :, y, x] - embedded[image, :, j, i]).numpy()).mean())
                name = "apart" if first != second else "background" if first == 0 else "label"
                terms[name].append(-np.log((1 - weight if first != second else weight) + FLOOR))
    means = {name: np.mean(values) for name, values in terms.items() if values}
    if background:
        expected = means["background"] / 4 + means["label"] / 4 + means["apart"] / 2
    else:
        expected = means["label"] / 2 + means["apart"] / 2
    assert float(neighbour_loss(neighbour_affinity(embedded), labels)) == pytest.approx(expected, abs=1e-12)


def test_unknown_positions_get_no_gradient_from_neighbour_loss() -> None:
    embedded = torch.rand(1, 4, 9, 9, generator=torch.Generator().manual_seed(2)).requires_grad_()
    labels = torch.from_numpy(voronoi(9, 3, 0))[None] + 1
    labels[0, 4, 4] = UNKNOWN
    neighbour_loss(neighbour_affinity(embedded), labels).backward()
    assert embedded.grad is not None
    assert not embedded.grad[0, :, 4, 4].any()
    assert embedded.grad[0, :, 4, 3].any()


def test_roc_auc_counts_pairs_in_order_and_ties_as_half() -> None:
    affinity, same_segment = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert roc_auc(affinity, same_segment) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert np.isnan(roc_auc(affinity, np.ones(4, bool)))


def test_a_position_has_the_label_of_most_of_its_pixels() -> None:
    labels = np.zeros((40, 60), np.int64)
    labels[:, 33:] = 7
    labels[:10] = -1
    positions = labels_on_grid(labels, (4, 6))
    assert (positions[0] == UNKNOWN).all()
    assert (positions[1:, :3] == 0).all()
    assert (positions[1:, 3] == UNKNOWN).all(), "7 of its 10 columns of pixels have one label, fewer than 80 %"
    assert (positions[1:, 4:] == 7).all()
