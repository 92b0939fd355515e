"""Class activation maps, and the labels, regions and crops that are made from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.training.recipes import cams, crops
from pipeline.training.recipes.settings import IGNORE_INDEX

THRESHOLDS = cams.Thresholds(high=0.7, low=0.25)


def test_maps_are_the_sum_over_scales_of_the_maximum_over_mirror_images() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    weight = torch.randn(2, 3, 8, 8, generator=generator)  # not symmetric, so that mirroring changes the maps
    present = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    (found,) = cams.activation_maps(lambda x: (F.conv2d(x, weight, stride=8),), images, present)
    expected = torch.zeros(2, 2, 16, 16)
    for side in (32, 16, 48):
        scaled = F.interpolate(images, (side, side), mode="bilinear")
        both = [F.conv2d(x, weight, stride=8) for x in (scaled, scaled.flip(-1))]
        straight, mirrored = (F.interpolate(x, (16, 16), mode="bilinear") for x in both)
        expected += torch.maximum(straight, mirrored.flip(-1)).relu()
    expected -= expected.amin(dim=(2, 3), keepdim=True)
    expected /= expected.amax(dim=(2, 3), keepdim=True) + 1e-5
    expected[0, 1] = 0
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.max() <= 1
    assert cams.normalised(torch.full((1, 1, 4, 4), 3.0)).abs().max() == 0


def test_between_the_thresholds_pixels_are_ignored_and_uncertain() -> None:
    values = torch.tensor([[[[0.0, 0.25, 0.26, 0.7, 0.71]], [[0.1, 0.1, 0.1, 0.1, 0.9]]]])
    assert cams.labels_of(values, THRESHOLDS).tolist() == [[[0, 0, IGNORE_INDEX, IGNORE_INDEX, 2]]]
    assert cams.regions_of(values, THRESHOLDS).tolist() == [[[0, 0, 1, 2, 2]]]


def test_refined_labels_follow_the_border_of_the_image() -> None:
    """Two maps whose borders are four pixels off, on an image of two halves; the third image shows no class."""
    images = torch.full((3, 3, 64, 64), -1.0)
    images[..., 32:] = 1.0
    maps = torch.zeros(3, 3, 32, 32)
    maps[:, 1, :, 18:] = 1.0
    present = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    labels = cams.refined_labels(maps * present[..., None, None], present, images, THRESHOLDS)
    assert labels.shape == (3, 64, 64)
    for number in (0, 1):
        assert (labels[number, :, 40:] == 2).all()
        assert (labels[number, :, 32:36] == 2).float().mean() > 0.9, "the label grows to the border of the image"
        assert (labels[number, :, :24] == 0).all()
    assert (labels[2] == 0).all()


def test_refined_labels_do_not_depend_on_other_images_and_classes() -> None:
    generator = torch.Generator().manual_seed(1)
    images, maps = torch.rand(3, 3, 32, 32, generator=generator) * 2 - 1, torch.rand(3, 4, 16, 16, generator=generator)
    present = torch.tensor([[1.0, 1, 1, 1], [0, 0, 1, 0], [0, 1, 0, 1]])
    together = cams.refined_labels(maps, present, images, THRESHOLDS)
    for number in range(3):
        one = slice(number, number + 1)
        alone = cams.refined_labels(maps[one], present[one], images[one], THRESHOLDS)
        assert torch.equal(together[one], alone)
        shown = {0, IGNORE_INDEX, *(present[number].nonzero()[:, 0] + 1).tolist()}
        assert set(alone.unique().tolist()) <= shown
    uncertain = cams.refined_labels(torch.full((1, 1, 16, 16), 0.5), torch.ones(1, 1), images[:1], THRESHOLDS)
    assert (uncertain == IGNORE_INDEX).all(), "which are of the class for the low background alone"


def test_labels_are_taken_at_the_centres_of_tokens() -> None:
    labels = torch.arange(64).view(1, 8, 8)
    assert cams.at_tokens(labels, 2).tolist() == [[[18, 22], [50, 54]]]


def rngs(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng([3, number]) for number in range(count)]


@pytest.mark.parametrize("stride", [1, 2])
def test_crops_show_what_the_region_map_has_at_their_place(stride: int) -> None:
    """Images that hold the region map itself: a crop's pixels say whether it is a negative, and what its centre is.

    The second image is the mirror image of the first one, as if the dataset had mirrored it: with the same random
    numbers its crops are not at the mirrored places, but they agree with its own map all the same.
    """
    regions = torch.zeros(2, 32, 32, dtype=torch.int64)
    regions[0, 4:28, 2:16], regions[0, 8:24, 4:12] = 1, 2
    regions[1] = regions[0].flip(-1)
    size = 32 * stride
    images = regions.repeat_interleave(stride, 1).repeat_interleave(stride, 2)[:, None].expand(2, 3, size, size)
    drawn = crops.draw_crops(regions, size, 8 * stride, rngs(2))
    pixels = drawn.cut(images.float()).unflatten(0, (2, crops.CROPS))
    assert pixels.shape == (2, crops.CROPS, 3, 8 * stride, 8 * stride)
    assert torch.equal(pixels.mean(dim=(2, 3, 4)) > crops.NEGATIVE_MEAN, drawn.positive)
    assert (pixels[:, :, 0, 4 * stride, 4 * stride] <= 1).all()
    assert drawn.positive.any()
    assert not drawn.positive.all()


def test_crops_of_an_image_without_uncertain_places_are_drawn_anywhere() -> None:
    drawn = crops.draw_crops(torch.full((1, 16, 16), 2), 16, 8, rngs(1))
    assert drawn.positive.all()
    assert len({tuple(corner) for corner in drawn.corners[0].tolist()}) == crops.CROPS
    tiny = crops.draw_crops(torch.zeros(1, 4, 4, dtype=torch.int64), 8, 8, rngs(1))
    assert (tiny.corners == 0).all(), "where there is room for a single crop"
    assert not tiny.positive.any()


def test_the_colours_of_a_view_change_and_its_pixels_stay() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 0.5
    images[:, :, :, 8:] -= 0.9
    view = crops.recoloured(images, rngs(2))
    assert (view - images).abs().mean() > 0.02
    assert view.abs().max() <= 1
    for before, after in zip(images.mean(dim=1), view.mean(dim=1), strict=True):
        assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] > 0.9
