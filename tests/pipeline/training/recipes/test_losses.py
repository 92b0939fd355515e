"""The losses, compared with closed forms and with loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.training.recipes.losses import (
    affinity_loss,
    balanced_cross_entropy,
    class_token_contrast,
    token_affinity_loss,
)

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


def contrast_by_loops(student: torch.Tensor, teacher: torch.Tensor, positive: torch.Tensor) -> float:
    """The formula of ToCo's code in float64, which overflows for large outputs."""
    losses = []
    for views, globals_, flags in zip(student.double(), teacher.double(), positive.tolist(), strict=True):
        total = 0.0
        for view in globals_:
            values = [math.exp(float(view @ other) / 0.5) for other in views]
            negatives = sum(value for value, flag in zip(values, flags, strict=True) if not flag)
            positives = [value for value, flag in zip(values, flags, strict=True) if flag]
            total += sum(-math.log(value / (value + negatives + 1e-4)) for value in positives)
            total += math.log(1 + negatives + 1e-4)
        losses.append(total / (2 * sum(flags)))
    return sum(losses) / len(losses)


def test_class_token_contrast_equals_loops_in_float64() -> None:
    generator = torch.Generator().manual_seed(4)
    student = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    teacher = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)
    positive = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]).bool()
    loss = class_token_contrast(student, teacher, positive)
    assert float(loss) == pytest.approx(contrast_by_loops(student, teacher, positive), rel=1e-7)


def test_class_token_contrast_of_hand_made_views() -> None:
    """Without negatives each positive view costs ln(1 + 1e-4 / e^x), and the second term is ln(1 + 1e-4)."""
    teacher = torch.tensor([[[1.0], [1.0]]], dtype=torch.float64)
    alone = class_token_contrast(teacher, teacher, torch.tensor([[True, True]]))
    assert float(alone) == pytest.approx(math.log1p(1e-4 / math.exp(2)) + math.log1p(1e-4) / 2, rel=1e-9)
    views = torch.tensor([[[1.0], [1.0], [-1.0]]], dtype=torch.float64)
    negatives = 1e-4 + math.exp(-2)
    expected = math.log1p(negatives / math.exp(2)) + math.log1p(negatives) / 2
    assert float(class_token_contrast(views, teacher, torch.tensor([[True, True, False]]))) == pytest.approx(expected)


@pytest.mark.parametrize("flags", [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_class_token_contrast_is_finite_for_logits_of_a_thousand(flags: list[int], sign: float) -> None:
    """Also without positive and without negative views; ToCo's code computes exp(2000)."""
    student = (torch.tensor([[[1.0], [-1.0], [1.0], [-1.0]]]) * 1e3).requires_grad_()
    teacher = torch.tensor([[[sign], [sign]]])
    loss = class_token_contrast(student, teacher, torch.tensor([flags]).bool())
    loss.backward()
    assert loss.isfinite()
    assert loss >= 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


def affinity_of_tokens_by_loops(affinity: torch.Tensor, labels: torch.Tensor, near: torch.Tensor) -> float:
    losses = []
    for weights, ids in zip(affinity.tolist(), labels.tolist(), strict=True):
        same, other = [], []
        for i, left in enumerate(ids):
            for j, right in enumerate(ids):
                if near[i, j] and IGNORED not in (left, right):
                    (same if left == right else other).append(weights[i][j])
        losses.append(0.5 * sum(1 - w for w in same) / (len(same) + 1) + 0.5 * sum(other) / (len(other) + 1))
    return sum(losses) / len(losses)


def test_token_affinity_equals_a_double_loop_and_ignored_pairs_have_no_gradient() -> None:
    generator = torch.Generator().manual_seed(5)
    affinity = torch.rand(2, 6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 0, 1, 1, IGNORED, 0], [2, 2, 2, 2, 2, 2]])
    near = torch.rand(6, 6, generator=generator) < 0.7
    loss = token_affinity_loss(affinity, labels, near, IGNORED)
    assert loss.item() == pytest.approx(affinity_of_tokens_by_loops(affinity, labels, near), rel=1e-12)
    loss.backward()
    assert affinity.grad is not None
    assert (affinity.grad[0, 4] == 0).all()
    assert (affinity.grad[0, :, 4] == 0).all()
    assert (affinity.grad[:, ~near] == 0).all()
    perfect = (labels[:, :, None] == labels[:, None, :]).double()
    known = (labels[0] != IGNORED).sum()
    pairs = int(perfect[0][labels[0] != IGNORED][:, labels[0] != IGNORED].sum())
    assert int(known) == 5
    everywhere = torch.ones(6, 6, dtype=torch.bool)
    assert float(token_affinity_loss(perfect[:1], labels[:1], everywhere, IGNORED)) == 0
    assert float(token_affinity_loss(1 - perfect[:1], labels[:1], everywhere, IGNORED)) == pytest.approx(
        0.5 * pairs / (pairs + 1) + 0.5 * (25 - pairs) / (26 - pairs)
    )


def test_gradients_of_the_contrasts_match_finite_differences() -> None:
    generator = torch.Generator().manual_seed(6)
    student = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64)
    positive = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]]).bool()
    assert torch.autograd.gradcheck(lambda x: class_token_contrast(x, teacher, positive), student)
    affinity = torch.rand(1, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels, near = torch.tensor([[0, 1, 1, IGNORED]]), torch.ones(4, 4, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda x: token_affinity_loss(x, labels, near, IGNORED), affinity)
