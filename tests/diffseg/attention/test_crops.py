"""The attention of crops on a grid twice as fine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from planted import adjusted_rand_index, planted
from references import bilinear_axis

from diffseg import Segmenter
from diffseg.attention.crops import attention_with_crops, crop_origins, merge_crops
from diffseg.attention.maps import SelfAttention
from diffseg.method.decide import decide
from diffseg.method.proposals import scores_of
from diffseg.settings import settings_of
from diffseg.tiny.scenes.scenes import VALIDATION_SEEDS, generate_scene

GRID = (4, 6)


def random_rows(seed: int, images: int = 2) -> torch.Tensor:
    rows = torch.rand(images, 24, 24, generator=torch.Generator().manual_seed(seed)) ** 3
    return rows / rows.sum(dim=-1, keepdim=True)


def merge_by_elements(attention: np.ndarray, per_side: int, crops: list[np.ndarray]) -> np.ndarray:
    """Merge the crops of one image query by query, and return float64 [Q, Q]."""
    height, width = GRID
    origins = crop_origins(GRID, per_side)
    result = np.zeros((2 * height, 2 * width, 2 * height, 2 * width))
    for y in range(2 * height):
        for x in range(2 * width):
            coarse = attention[(y // 2) * width + x // 2].reshape(GRID)
            keys = bilinear_axis(height, 2 * height) @ coarse @ bilinear_axis(width, 2 * width).T
            keys /= keys.sum()
            views = []
            for (top, left), crop in zip(origins, crops, strict=True):
                if top <= y < top + height and left <= x < left + width:
                    view, inside = keys.copy(), (slice(top, top + height), slice(left, left + width))
                    view[inside] = keys[inside].sum() * crop[(y - top) * width + x - left].reshape(GRID)
                    views.append(view)
            result[y, x] = (keys + np.mean(views, axis=0)) / 2
    return result.reshape(4 * height * width, -1)


@pytest.mark.parametrize("per_side", [2, 3, 4])
def test_merged_crops_agree_with_the_reference(per_side: int) -> None:
    attention, crops = random_rows(0), [random_rows(seed) for seed in range(1, per_side**2 + 1)]
    merged, fine = merge_crops(attention, GRID, per_side, crops)
    assert fine == (8, 12)
    assert merged.shape == (2, 96, 96)
    torch.testing.assert_close(merged.sum(dim=-1), torch.ones(2, 96))
    for image in range(2):
        of_image = [crop[image].double().numpy() for crop in crops]
        expected = merge_by_elements(attention[image].double().numpy(), per_side, of_image)
        np.testing.assert_allclose(merged[image].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("per_side", range(2, 9))
def test_crops_lie_within_the_grid_and_cover_it(per_side: int) -> None:
    covered = np.zeros((64, 64), dtype=int)
    for row, column in crop_origins((32, 32), per_side):
        assert 0 <= min(row, column) <= max(row, column) <= 32
        covered[row : row + 32, column : column + 32] += 1
    assert covered.min() == 1
    assert covered.sum() == per_side**2 * 32**2


def test_crops_separate_regions_that_are_finer_than_the_coarse_grid() -> None:
    """Each quarter has stripes one fine position wide, so that a coarse position covers two of them."""
    rows, columns = np.mgrid[:32, :32]
    ground_truth = rows // 16 * 2 + columns // 16 + 4 * (rows % 2)
    fine = planted(ground_truth, leak=0.02)
    coarse = fine.reshape(16, 2, 16, 2, 16, 2, 16, 2).sum(axis=(5, 7)).mean(axis=(1, 3)).reshape(256, 256)
    blocks = fine.reshape(32, 32, 32, 32)
    crops = []
    for row, column in crop_origins((16, 16), 2):
        rows, columns = slice(row, row + 16), slice(column, column + 16)
        crop = blocks[rows, columns, rows, columns].reshape(256, 256)
        crops.append(torch.from_numpy(crop / crop.sum(axis=1, keepdims=True)).float()[None])

    def index(attention: torch.Tensor, grid: tuple[int, int]) -> float:
        recorded = SelfAttention(maps={grid: attention}, layers={grid: 1})
        scores, _ = scores_of(recorded, settings_of(anchors_per_side=32), (0.3, 0.3, 0.3))
        return adjusted_rand_index(decide(scores[0], (32, 32)).labels, ground_truth)

    whole = torch.from_numpy(coarse).float()[None]
    assert index(whole, (16, 16)) < 0.6
    assert index(*merge_crops(whole, (16, 16), 2, crops)) > 0.9


def test_each_crop_shows_its_part_of_the_image() -> None:
    detail = torch.arange(2 * 3 * 64 * 64, dtype=torch.float32).view(2, 3, 64, 64)
    recorded = []

    def record(pixels: torch.Tensor) -> SelfAttention:
        recorded.append(pixels)
        return SelfAttention(maps={(4, 4): torch.full((2, 16, 16), 1 / 16)}, layers={(4, 4): 1})

    attention = attention_with_crops(record(detail), detail, 3, "paper", record)
    torch.testing.assert_close(attention.maps[8, 8], torch.full((2, 64, 64), 1 / 64))
    corners = [(top, left) for top in (0, 16, 32) for left in (0, 16, 32)]
    for (top, left), pixels in zip(corners, recorded[1:], strict=True):
        assert torch.equal(pixels, detail[..., top : top + 32, left : left + 32])


@pytest.mark.parametrize("fit", ["resize", "letterbox", "crop"])
def test_a_cropped_image_is_labelled_in_full_and_independently_of_its_batch(
    fit: str, checkpoints: dict[str, Path]
) -> None:
    image = generate_scene(VALIDATION_SEEDS[0], 128).image[:90]
    segmenter = Segmenter.from_pretrained(checkpoints["sd1"], tau=0.005, crops=2, fit=fit, resolution=64, batch_size=2)
    model_input = segmenter.prepare(image)
    assert model_input.detail is not None
    assert model_input.detail.shape == (3, 128, 128)
    assert segmenter.attention_of([model_input]).grid == (16, 16)
    alone = segmenter(image)
    _, beside = segmenter([image[::-1].copy(), image])
    assert len(alone.segments) > 5
    assert np.array_equal(alone.labels, beside.labels)
