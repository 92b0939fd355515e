"""The losses against closed forms and loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.training.losses import affinity_loss, balanced_cross_entropy

IGNORED = -100


def affinity_by_loops(features: torch.Tensor, labels: torch.Tensor) -> float:
    losses = []
    for vectors, ids in zip(features.double().tolist(), labels.tolist(), strict=True):
        same, other = [], []
        for i, (left, one) in enumerate(zip(vectors, ids, strict=True)):
            for j, (right, two) in enumerate(zip(vectors, ids, strict=True)):
                if i == j or IGNORED in (one, two):
                    continue
                dot = sum(a * b for a, b in zip(left, right, strict=True))
                cosine = abs(dot) / math.hypot(*left) / math.hypot(*right)
                (same if one == two else other).append(cosine)
        losses.append(0.5 * (1 - sum(same) / (len(same) + 1)) + 0.5 * sum(other) / (len(other) + 1))
    return sum(losses) / len(losses)


def test_affinity_equals_a_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 12, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (3, 12), generator=generator)
    labels[1, :4] = IGNORED
    found = affinity_loss(features, labels, IGNORED).loss
    assert float(found) == pytest.approx(affinity_by_loops(features, labels), abs=1e-12)


def test_affinity_of_vectors_made_by_hand() -> None:
    """Two pixels of each of two segments: 4 ordered pairs within, 8 across."""
    labels = torch.tensor([[0, 0, 1, 1]])
    x, y = [1.0, 0.0], [0.0, 1.0]
    perfect = affinity_loss(torch.tensor([[x, [-3.0, 0.0], y, y]]), labels, IGNORED)
    assert perfect.loss.item() == pytest.approx(0.5 * (1 - 4 / 5))  # a sign and a length mean nothing
    worst = affinity_loss(torch.tensor([[x, y, x, y]]), labels, IGNORED)
    assert worst.loss.item() == pytest.approx(0.5 + 0.5 * 4 / 9)
    assert (worst.same.item(), worst.other.item()) == (0, pytest.approx(4 / 9))
    all_alike = affinity_loss(torch.tensor([[x, x, x, x]]), labels, IGNORED)
    assert all_alike.loss.item() == pytest.approx(0.5 * (1 - 4 / 5) + 0.5 * 8 / 9)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [IGNORED] * 4])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e3])
def test_affinity_is_finite_whatever_pairs_there_are(labels: list[int], scale: float) -> None:
    features = (torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(1)) * scale).requires_grad_()
    loss = affinity_loss(features, torch.tensor([labels]), IGNORED).loss
    loss.backward()
    assert 0 <= loss.item() <= 1
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 0, 1, 1, 2, IGNORED], [0, 1, 0, 1, 0, 1]])
    assert torch.autograd.gradcheck(lambda x: affinity_loss(x, labels, IGNORED).loss, features)
    logits = torch.randn(2, 3, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: balanced_cross_entropy(x, labels.view(2, 2, 3), IGNORED), logits)


def test_background_and_the_others_are_half_of_the_cross_entropy_each() -> None:
    logits = torch.randn(1, 3, 1, 6, generator=torch.Generator().manual_seed(3))
    classes = torch.tensor([[[0, 0, 0, 1, 2, IGNORED]]])
    each = F.cross_entropy(logits, classes, reduction="none")[0, 0]
    found = balanced_cross_entropy(logits, classes, IGNORED)
    assert float(found) == pytest.approx(float(each[:3].mean() + each[3:5].mean()) / 2, rel=1e-6)
    foreground = balanced_cross_entropy(logits[..., 3:], classes[..., 3:], IGNORED)
    assert float(foreground) == pytest.approx(float(each[3:5].mean()), rel=1e-6)
    assert float(balanced_cross_entropy(logits, torch.full_like(classes, IGNORED), IGNORED)) == 0
