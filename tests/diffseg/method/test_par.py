"""Pixel-adaptive refinement: closed forms, and agreement with the formula pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffseg import Segmenter
from diffseg.method import par as refinement
from diffseg.method.par import (
    BANDWIDTH,
    DISTANCE_WEIGHT,
    ITERATIONS,
    MIN_DEVIATION,
    OFFSETS,
    neighbour_weights,
    pixel_adaptive,
    refine,
)


def random_image(seed: int, size: tuple[int, int] = (24, 24)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (1, 3, *size)).astype(np.float32))


def random_scores(seed: int, count: int, size: tuple[int, int] = (24, 24)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((1, count, *size), dtype=np.float32))


def two_halves(contrast: float, size: int = 24) -> torch.Tensor:
    """Return an image with a step edge in the middle and a little noise."""
    image = random_image(0, (size, size)) * 0.01
    image[..., size // 2 :] += contrast
    return image


def refined_by_pixels(scores: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Refine in float64, pixel by pixel and neighbour by neighbour."""
    _, height, width = image.shape
    distances = np.array([np.hypot(y, x) for y, x in OFFSETS])
    near = np.exp(-((distances / (np.std(distances, ddof=1) * BANDWIDTH)) ** 2))
    weights = np.zeros((height, width, height, width))
    for y in range(height):
        for x in range(width):
            positions = [(min(max(y + j, 0), height - 1), min(max(x + i, 0), width - 1)) for j, i in OFFSETS]
            colours = np.array([image[:, j, i] for j, i in positions])
            scale = np.maximum(np.std(colours, axis=0, ddof=1), MIN_DEVIATION) * BANDWIDTH
            similarity = np.exp(-(((colours - image[:, y, x]) / scale) ** 2).mean(axis=1))
            kappa = (similarity / similarity.sum() + DISTANCE_WEIGHT * near / near.sum()) / (1 + DISTANCE_WEIGHT)
            for position, weight in zip(positions, kappa, strict=True):
                weights[y, x][position] += weight
    matrix, flat = weights.reshape(height * width, -1), scores.reshape(len(scores), -1)
    for _ in range(ITERATIONS):
        flat = flat @ matrix.T
    return flat.reshape(scores.shape)


def test_it_agrees_with_a_loop_over_pixels() -> None:
    scores, image = random_scores(1, 3), random_image(2)
    expected = refined_by_pixels(scores[0].double().numpy(), image[0].double().numpy())
    np.testing.assert_allclose(pixel_adaptive(scores, image)[0].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_each_image_of_a_batch_is_refined_as_if_alone() -> None:
    scores = torch.cat([random_scores(seed, 3) for seed in range(3)])
    images = torch.cat([random_image(seed + 5) for seed in range(3)])
    alone = [pixel_adaptive(scores[i : i + 1], images[i : i + 1]) for i in range(3)]
    assert torch.equal(pixel_adaptive(scores, images), torch.cat(alone))


@pytest.mark.parametrize("image", [random_image(3), two_halves(1.0), torch.zeros(2, 3, 5, 70), torch.ones(1, 3, 1, 1)])
def test_the_weights_of_a_pixel_sum_to_1(image: torch.Tensor) -> None:
    weights = neighbour_weights(image)
    assert weights.shape == (48, len(image), *image.shape[2:])
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(len(image), *image.shape[2:]))


def test_weights_in_a_constant_image_depend_on_distance_only() -> None:
    weights = neighbour_weights(torch.full((1, 3, 30, 40), 0.3))
    expected = torch.full((48,), 1 / 48)
    distances = torch.tensor(OFFSETS, dtype=torch.float32).norm(dim=1)
    near = (-(distances / (0.3 * distances.std())).square()).softmax(dim=0)
    expected = (expected + 0.01 * near) / 1.01
    torch.testing.assert_close(weights, expected[:, None, None, None].expand_as(weights))


def test_scores_stay_within_the_range_of_their_proposal_and_zeros_stay_zeros() -> None:
    scores = random_scores(4, 3)
    scores[:, 1] = 0
    scores[:, 2] = 0.7
    (scores,), (refined,) = scores, pixel_adaptive(scores, random_image(5))
    assert refined[0].min() >= scores[0].min()
    assert refined[0].max() <= scores[0].max() * (1 + 1e-5)
    assert not refined[1].any()
    torch.testing.assert_close(refined[2], scores[2])
    assert refined[0].std() < scores[0].std() * 0.6, "it is a mean"


def test_labels_stop_at_a_step_edge() -> None:
    scores = torch.zeros(1, 2, 24, 24)
    scores[0, 0, :, :15] = 1  # three columns too many
    scores[0, 1] = 1 - scores[0, 0]
    labels = pixel_adaptive(scores, two_halves(1.0))[0].argmax(dim=0)
    assert (labels[:, :12] == 0).all()
    assert (labels[:, 12:] == 1).all()
    blind = pixel_adaptive(scores, two_halves(0.0))[0].argmax(dim=0)
    assert not torch.equal(blind, labels), "without the edge there is nothing to stop at"


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_the_size_of_bands_makes_no_difference(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, image = random_scores(6, 4, (30, 20)), random_image(6, (30, 20))
    expected = pixel_adaptive(scores, image)
    monkeypatch.setattr(refinement, "BAND_ROWS", rows)
    assert torch.equal(pixel_adaptive(scores, image), expected)


def test_the_working_image_has_at_most_256_pixels_a_side() -> None:
    refined = refine(random_scores(8, 2, (8, 8)), random_image(8, (320, 320)))
    assert refined.shape == (1, 2, 256, 256)


def test_as_many_images_are_refined_at_once_as_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.cat([random_scores(seed, 3, (8, 8)) for seed in range(5)])
    images = torch.cat([random_image(seed + 5) for seed in range(5)])
    expected = refine(scores, images)
    sizes = []

    def recorded(scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        sizes.append(len(scores))
        return pixel_adaptive(scores, image)

    monkeypatch.setattr(refinement, "pixel_adaptive", recorded)
    monkeypatch.setattr(refinement, "ELEMENTS_AT_ONCE", 2 * (48 + 2 * 3) * 24 * 24)
    assert torch.equal(refine(scores, images), expected)
    assert sizes == [2, 2, 1]


def test_borders_of_labels_follow_the_image(checkpoints: dict[str, Path]) -> None:
    """With random weights, tokens differ by position and colour only, so borders lie anywhere within a token."""
    image = np.zeros((128, 128, 3), dtype=np.uint8)
    image[:, 44:] = 255  # no multiple of a token's 8 pixels
    image += np.random.default_rng(0).integers(0, 2, image.shape, dtype=np.uint8) * (image == 0)

    def border_share(method: str) -> float:
        """Return the share of label changes between columns that lie at the edge in the image."""
        labels = Segmenter.from_pretrained(checkpoints["sd1"], tau=0.05, method=method)(image).labels
        changes = labels[:, 1:] != labels[:, :-1]
        return float(changes[:, 43].sum() / changes.sum())

    assert border_share("diffseg,par") > 2 * border_share("diffseg")
