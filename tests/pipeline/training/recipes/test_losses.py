"""The losses, compared with closed forms and with loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.training.recipes.losses import affinity_loss, balanced_cross_entropy

IGNORED = -100


def affinity_by_loops(features: torch.Tensor, labels: torch.Tensor) -> float:
    losses = []
    for vectors, ids in zip(features.double().tolist(), labels.tolist(), strict=True):
        same, other = [], []
        for i, (left, left_id) in enumerate(zip(vectors, ids, strict=True)):
            for j, (right, right_id) in enumerate(zip(vectors, ids, strict=True)):
                if i == j or IGNORED in (left_id, right_id):
                    continue
                dot = sum(a * b for a, b in zip(left, right, strict=True))
                cosine = abs(dot) / math.hypot(*left) / math.hypot(*right)
                (same if left_id == right_id else other).append(cosine)
        losses.append(0.5 * (1 - sum(same) / (len(same) + 1)) + 0.5 * sum(other) / (len(other) + 1))
    return sum(losses) / len(losses)


def test_affinity_loss_equals_a_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 12, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (3, 12), generator=generator)
    labels[1, :4] = IGNORED
    loss = affinity_loss(features, labels, IGNORED).loss
    assert float(loss) == pytest.approx(affinity_by_loops(features, labels), abs=1e-12)


def test_affinity_loss_of_hand_made_vectors() -> None:
    """Two segments of two pixels each: 4 ordered pairs within segments, 8 across."""
    labels = torch.tensor([[0, 0, 1, 1]])
    x, y = [1.0, 0.0], [0.0, 1.0]
    perfect = affinity_loss(torch.tensor([[x, [-3.0, 0.0], y, y]]), labels, IGNORED)
    assert perfect.loss.item() == pytest.approx(0.5 * (1 - 4 / 5))  # sign and length of a vector do not matter
    worst = affinity_loss(torch.tensor([[x, y, x, y]]), labels, IGNORED)
    assert worst.loss.item() == pytest.approx(0.5 + 0.5 * 4 / 9)
    assert (worst.same.item(), worst.other.item()) == (0, pytest.approx(4 / 9))
    all_equal = affinity_loss(torch.tensor([[x, x, x, x]]), labels, IGNORED)
    assert all_equal.loss.item() == pytest.approx(0.5 * (1 - 4 / 5) + 0.5 * 8 / 9)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [IGNORED] * 4])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e3])
def test_affinity_loss_is_finite_without_pairs_of_one_kind(labels: list[int], scale: float) -> None:
    features = (torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(1)) * scale).requires_grad_()
    loss = affinity_loss(features, torch.tensor([labels]), IGNORED).loss
    loss.backward()
    assert 0 <= loss.item() <= 1
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_gradients_match_finite_differences() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 0, 1, 1, 2, IGNORED], [0, 1, 0, 1, 0, 1]])
    assert torch.autograd.gradcheck(lambda x: affinity_loss(x, labels, IGNORED).loss, features)
    logits = torch.randn(2, 3, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: balanced_cross_entropy(x, labels.view(2, 2, 3), IGNORED), logits)


def test_background_and_foreground_each_count_half_of_the_cross_entropy() -> None:
    logits = torch.randn(1, 3, 1, 6, generator=torch.Generator().manual_seed(3))
    classes = torch.tensor([[[0, 0, 0, 1, 2, IGNORED]]])
    losses = F.cross_entropy(logits, classes, reduction="none")[0, 0]
    loss = balanced_cross_entropy(logits, classes, IGNORED)
    assert float(loss) == pytest.approx(float(losses[:3].mean() + losses[3:5].mean()) / 2, rel=1e-6)
    foreground = balanced_cross_entropy(logits[..., 3:], classes[..., 3:], IGNORED)
    assert float(foreground) == pytest.approx(float(losses[3:5].mean()), rel=1e-6)
    assert float(balanced_cross_entropy(logits, torch.full_like(classes, IGNORED), IGNORED)) == 0
