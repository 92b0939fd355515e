"""Images that are resized on the device give the squares, and the labels, of those that Pillow resizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffseg import Segmenter
from diffseg.component_settings import Fit
from diffseg.images import canvas
from diffseg.images.canvas import fit_image
from diffseg.images.device_resize import squares_of
from diffseg.tiny.scenes.scenes import generate_scene

CPU = torch.device("cpu")
SIZES = [(480, 640), (640, 427), (333, 500), (64, 64), (1, 1), (100, 60), (3, 700), (700, 3), (1200, 1600)]

WITHOUT_TIES = (333, 500)
"""A size at which hardly any value lies half-way between two levels."""


def smooth_image(size: tuple[int, int]) -> np.ndarray:
    """Return waves with noise, uint8 [H, W, 3]."""
    y, x = np.meshgrid(*(np.linspace(0, 9, length) for length in size), indexing="ij")
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 0.1, waves.shape)
    return np.clip(127 + 100 * (waves + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("fit", ["resize", "letterbox", "crop"])
@pytest.mark.parametrize("antialias", [True, False])
def test_squares_agree_with_pillow_except_for_levels_that_lie_half_way(fit: Fit, antialias: bool) -> None:
    images = [smooth_image(size) for size in SIZES]
    expected = [fit_image(image, 128, fit, antialias=antialias) for image in images]
    inputs = [fit_image(image, 128, fit, antialias=antialias, on_device=True) for image in images]
    squares = squares_of(inputs, CPU)
    assert (squares.shape, squares.dtype) == ((len(SIZES), 3, 128, 128), torch.float32)
    for square, there, here in zip(squares, inputs, expected, strict=True):
        assert (there.content, there.region, there.size) == (here.content, here.region, here.size)
        levels = (square - here.pixels).abs() * 127.5
        assert levels.max() < 2.01
        assert (levels > 0.5).float().mean() < (0.001 if there.size == WITHOUT_TIES else 0.2)


def test_a_square_does_not_depend_on_the_other_images_of_its_batch() -> None:
    inputs = [fit_image(smooth_image(size), 64, "resize", on_device=True) for size in SIZES]
    together = squares_of(inputs, CPU)
    for square, model_input in zip(together, inputs, strict=True):
        assert torch.equal(square, squares_of([model_input], CPU)[0])


@pytest.mark.parametrize(("limit", "value"), [("MAX_PIXELS_SENT", 480 * 640 - 1), ("MAX_REDUCTION", 4)])
def test_an_image_that_is_too_large_for_the_device_is_sent_in_its_final_size(
    limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = smooth_image((480, 640))
    assert fit_image(image, 128, "letterbox", on_device=True).pixels.shape == (480, 640, 3)
    monkeypatch.setattr(canvas, limit, value)
    sent = fit_image(image, 128, "letterbox", on_device=True)
    assert sent.pixels.shape == (96, 128, 3)
    assert torch.equal(squares_of([sent], CPU)[0], fit_image(image, 128, "letterbox").pixels)


def test_a_read_only_image_is_copied() -> None:
    image = smooth_image((40, 60))
    image.flags.writeable = False
    model_input = fit_image(image, 32, "resize", on_device=True)
    model_input.pixels.zero_()
    assert image.any()


def test_labels_agree_with_those_of_images_that_pillow_has_resized() -> None:
    images = [generate_scene(seed, 200).image[:, : 120 + 40 * seed] for seed in range(3)]
    segmenter = Segmenter.from_pretrained("tiny", batch_size=3)
    expected = segmenter(images)
    segmenter.resizes_on_device = True
    for segmentation, reference in zip(segmenter(images), expected, strict=True):
        assert segmentation.labels.shape == reference.labels.shape
        assert (segmentation.labels == reference.labels).mean() > 0.995


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_the_squares_of_a_cpu() -> None:
    inputs = [fit_image(smooth_image(size), 512, "resize", on_device=True) for size in SIZES]
    levels = (squares_of(inputs, torch.device("cuda")).cpu() - squares_of(inputs, CPU)).abs() * 127.5
    assert levels.max() < 2.01
    assert (levels > 0.5).float().mean() < 0.02
