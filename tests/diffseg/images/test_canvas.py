"""Images of any size are fitted into the model's square, and labels return to the pixels of the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffseg.component_settings import Fit
from diffseg.images.canvas import PAD, ModelInput, fit_image
from diffseg.method.decide import decide
from diffseg.segmentation import IGNORE, Box

FITS: tuple[Fit, ...] = ("resize", "letterbox", "crop")
SIZES = [(64, 64), (480, 640), (640, 480), (37, 53), (512, 200), (1, 1), (3, 2000), (2000, 3), (63, 65)]
GREY = PAD / 127.5 - 1


def random_image(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def inside(model_input: ModelInput, side: int) -> tuple[slice, slice]:
    box = model_input.content
    edges = [round(edge * side) for edge in (box.top, box.bottom, box.left, box.right)]
    return slice(*edges[:2]), slice(*edges[2:])


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [*SIZES, (20000, 3), (3, 20000)])
@pytest.mark.parametrize("antialias", [True, False])
def test_an_image_of_any_size_becomes_a_square_of_finite_pixels(
    fit: Fit, size: tuple[int, int], antialias: bool
) -> None:
    model_input = fit_image(random_image(size), 64, fit, antialias=antialias)
    assert model_input.pixels.shape == (3, 64, 64)
    assert model_input.pixels.dtype == torch.float32
    assert model_input.pixels.is_contiguous(), "a batch of squares in another layout is stacked slowly"
    assert model_input.pixels.abs().max() <= 1
    box = model_input.content
    assert 0 <= box.top < box.bottom <= 1
    assert 0 <= box.left < box.right <= 1


@pytest.mark.parametrize("fit", FITS)
def test_a_square_of_the_right_size_is_only_scaled_to_the_value_range(fit: Fit) -> None:
    image = random_image((64, 64))
    model_input = fit_image(image, 64, fit)
    np.testing.assert_allclose(model_input.pixels.permute(1, 2, 0).numpy(), image / 127.5 - 1, atol=1e-6)
    assert model_input.content == Box(top=0, left=0, bottom=1, right=1)
    assert model_input.region == Box(top=0, left=0, bottom=64, right=64)


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((100, 200), (16, 48), (0, 64)), ((200, 100), (0, 64), (16, 48)), ((20000, 3), (0, 64), (31, 32))],
)
def test_letterbox_centres_the_image_in_grey(
    size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    model_input = fit_image(np.full((*size, 3), 255, dtype=np.uint8), 64, "letterbox")
    expected = torch.full((3, 64, 64), GREY)
    expected[:, slice(*rows), slice(*columns)] = 1
    torch.testing.assert_close(model_input.pixels, expected)
    assert inside(model_input, 64) == (slice(*rows), slice(*columns))
    assert model_input.region == Box(top=0, left=0, bottom=size[0], right=size[1])


@pytest.mark.parametrize(
    ("size", "region"),
    [((60, 100), (0, 20, 60, 80)), ((100, 61), (19, 0, 80, 61)), ((1, 7), (0, 3, 1, 4))],
)
def test_crop_takes_the_centre_square(size: tuple[int, int], region: tuple[int, int, int, int]) -> None:
    image = random_image(size)
    top, left, bottom, right = region
    model_input = fit_image(image, bottom - top, "crop")
    assert model_input.region == Box(top=top, left=left, bottom=bottom, right=right)
    cropped = image[top:bottom, left:right] / 127.5 - 1
    np.testing.assert_allclose(model_input.pixels.permute(1, 2, 0).numpy(), cropped, atol=1e-6)


def test_antialias_averages_pixels_and_no_antialias_drops_them() -> None:
    image = np.zeros((512, 512, 3), dtype=np.uint8)
    image[::8] = 255  # one line in eight, which averages to dark grey
    smooth = fit_image(image, 64, "resize").pixels
    assert (smooth.mean() + 1) / 2 == pytest.approx(1 / 8, abs=0.02)
    assert smooth.std() < 0.05
    assert fit_image(image, 64, "resize", antialias=False).pixels.max() == -1


def test_without_antialias_is_half_pixel_bilinear() -> None:
    image = random_image((5, 7))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(pixels, (16, 16), mode="bilinear", align_corners=False)[0]
    resized = (fit_image(image, 16, "resize", antialias=False).pixels + 1) * 127.5
    assert (resized - expected).abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("antialias", [True, False])
def test_read_only_and_strided_images_are_accepted(fit: Fit, antialias: bool) -> None:
    image = random_image((40, 60))
    expected = fit_image(image, 32, fit, antialias=antialias).pixels
    image.flags.writeable = False
    assert torch.equal(fit_image(image, 32, fit, antialias=antialias).pixels, expected)
    reversed_twice = image[::-1].copy()[::-1]
    assert torch.equal(fit_image(reversed_twice, 32, fit, antialias=antialias).pixels, expected)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(480, 640), (640, 480), (300, 100), (97, 350), (256, 256)])
def test_labels_return_to_the_pixels_of_the_image(fit: Fit, size: tuple[int, int]) -> None:
    """Label four coloured quarters with uneven borders by the colours of the square; the borders must return."""
    height, width = size
    border_y, border_x = round(height * 0.45), round(width * 0.55)
    truth = 2 * (np.arange(height)[:, None] >= border_y) + (np.arange(width)[None, :] >= border_x)
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=np.uint8)
    side = 256
    model_input = fit_image(colours[truth], side, fit)
    difference = model_input.pixels[None] - (torch.from_numpy(colours).float() / 127.5 - 1)[:, :, None, None]
    scores = torch.exp(-difference.square().sum(dim=1))
    box = model_input.content
    content = Box(top=box.top * side, left=box.left * side, bottom=box.bottom * side, right=box.right * side)
    labels = decide(scores, size, content=content, region=model_input.region).labels
    labelled = labels != IGNORE
    assert labelled.sum() == (min(size) ** 2 if fit == "crop" else height * width)
    wrong = labelled & (labels != truth)
    tolerance = 0.75 * max(
        1, max(size) / side
    )  # three quarters of the image pixels that one pixel of the square covers
    rows, columns = np.nonzero(wrong)
    distance = np.minimum(np.abs(rows + 0.5 - border_y), np.abs(columns + 0.5 - border_x))
    assert (distance <= tolerance).all(), f"{distance.max()} pixels off"
