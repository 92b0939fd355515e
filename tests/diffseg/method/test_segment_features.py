"""Features that are pooled from the output of a layer: closed forms, brute force and the fixed projection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention

from diffseg import IGNORE, Segmenter
from diffseg.affinity.state import hook_self_attention
from diffseg.attention.layers import attention_layers
from diffseg.method.segment_features import FEATURE_SIZE, feature_layers, labelled_region, pool, project, projection
from diffseg.segmentation import Box


def test_pooling_is_the_mean_over_pixels_of_a_float64_brute_force() -> None:
    generator = np.random.default_rng(0)
    maps = generator.standard_normal((FEATURE_SIZE, 6, 5)).astype(np.float32)
    labels = generator.integers(0, 3, (31, 17)).astype(np.uint16)
    labels[:4, :5] = IGNORE
    content = Box(top=1.5, left=0, bottom=4.5, right=5)  # as a letterboxed image lies in the square
    sums, areas = np.zeros((3, FEATURE_SIZE)), np.zeros(3)
    for y in range(31):
        for x in range(17):
            if labels[y, x] != IGNORE:
                row, column = int(1.5 + (y + 0.5) * 3 / 31), int((x + 0.5) * 5 / 17)
                sums[labels[y, x]] += maps[:, row, column].astype(np.float64)
                areas[labels[y, x]] += 1
    pooled = pool(maps, labels, content)
    assert pooled.segments.dtype == pooled.image.dtype == np.float16
    np.testing.assert_allclose(pooled.segments, sums / areas[:, None], atol=2e-3)
    np.testing.assert_allclose(pooled.image, sums.sum(0) / areas.sum(), atol=2e-3)


def test_each_position_counts_alike_however_large_its_channels_are() -> None:
    maps = torch.zeros(1, 4, 2)
    maps[0, 0, 0], maps[0, 1, 1] = 1e6, 1e-3
    projected = project({(1, 2): maps})[0].numpy()
    pooled = pool(projected, np.zeros((2, 2), np.uint16), Box(top=0, left=0, bottom=1, right=2))
    np.testing.assert_array_equal(pooled.image[:4], [0.5, 0.5, 0, 0])


def test_the_three_finest_resolutions_are_joined_and_coarse_positions_repeated() -> None:
    sides = {1: 5, 2: 4, 4: 3, 8: 2}  # channels by side
    inputs = {(side, side): torch.randn(2, channels, side * side) for side, channels in sides.items()}
    joined = project(inputs).float()
    first = 0
    for side in (8, 4, 2):
        wanted = torch.nn.functional.normalize(inputs[side, side], dim=1).unflatten(2, (side, side))
        repeated = wanted.repeat_interleave(8 // side, 2).repeat_interleave(8 // side, 3)
        torch.testing.assert_close(joined[:, first : first + sides[side]], repeated, atol=1e-3, rtol=0)
        first += sides[side]
    assert not joined[:, first:].any()


def test_the_layers_that_are_read_are_the_last_ones_of_the_finest_resolutions() -> None:
    unet = Segmenter.from_pretrained("tiny").backbone.checkpoint.unet
    last: dict[int, str] = {}
    names = {layer.module: layer.name for layer in attention_layers(unet)}

    def remember(number: int, layer: Attention, inputs: torch.Tensor) -> None:
        last[inputs.shape[1]] = names[layer]

    with hook_self_attention(unet, remember), torch.inference_mode():
        unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 1, unet.config.cross_attention_dim))
    assert feature_layers(unet, 64) == [last[64], last[16], last[4]]


def test_numbers_that_are_not_finite_count_as_zero() -> None:
    maps = torch.ones(1, 4, 1)
    maps[0, :2, 0] = torch.tensor([float("nan"), float("inf")])
    projected = project({(1, 1): maps})
    assert projected[0, :4, 0, 0].tolist() == pytest.approx([0, 0, 0.5**0.5, 0.5**0.5], abs=1e-3)


def test_the_projection_keeps_cosines_and_never_changes() -> None:
    matrix = projection(1280)
    assert matrix[0, :8].mul(16).tolist() == [1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0]
    vectors = torch.nn.functional.normalize(torch.randn(40, 1280, generator=torch.Generator().manual_seed(0)), dim=1)
    vectors[20:] = torch.nn.functional.normalize(vectors[20:] + 2 * vectors[:1], dim=1)
    projected = torch.nn.functional.normalize(vectors @ matrix.T, dim=1)
    error = (projected @ projected.T - vectors @ vectors.T)[~torch.eye(40, dtype=torch.bool)]
    assert error.std() < 1 / FEATURE_SIZE**0.5


def test_a_layer_of_few_channels_is_kept_as_it_is() -> None:
    vectors = torch.randn(3, 80)
    assert torch.equal(vectors @ projection(80).T, torch.nn.functional.pad(vectors, (0, FEATURE_SIZE - 80)))


@pytest.mark.parametrize("fit", ["resize", "letterbox", "crop"])
def test_features_leave_labels_unchanged_and_hold_a_vector_for_each_segment(fit: str) -> None:
    generator = np.random.default_rng(0)
    image = np.kron(generator.integers(0, 256, (4, 5, 3)), np.ones((25, 30, 1))).astype(np.uint8)
    plain = Segmenter.from_pretrained("tiny", resolution=64, tau=0.05, fit=fit)
    wanted = plain(image)
    given = Segmenter(plain.backbone, plain.settings, features=True)(image)
    assert np.array_equal(given.labels, wanted.labels)
    assert given.segments == wanted.segments
    assert wanted.features is None
    areas = np.array([segment.area for segment in given.segments])
    assert len(areas) > 1
    mean = (given.features.segments.astype(np.float64) * areas[:, None]).sum(axis=0) / areas.sum()
    np.testing.assert_allclose(given.features.image, mean, atol=1e-3)


def test_the_labelled_region_of_a_centre_crop_leaves_out_the_rest() -> None:
    labels = np.full((2, 4), IGNORE, np.uint16)
    labels[:, 1:3] = 0
    assert labelled_region(labels, Box(top=0, left=1, bottom=2, right=3)).tolist() == [[0, 0], [0, 0]]
