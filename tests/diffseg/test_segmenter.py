"""The whole method: properties that hold with any weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffseg import IGNORE, ImageError, NonFiniteError, Segmentation, Segmenter, SegmenterSettings
from diffseg.method import par as refinement
from diffseg.settings import settings_of


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Return images with structure, of unusual sizes."""
    generator = np.random.default_rng(0)
    sizes = [(128, 128), (77, 201), (201, 77), (16, 300), (33, 1), (1, 1)]
    return [
        np.asarray(
            Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(size[::-1], resample=0)
        )
        for size in sizes
    ]


@pytest.fixture(scope="module")
def segmenters(checkpoints: dict[str, Path]) -> dict[int, Segmenter]:
    """Return segmenters by batch size. Weights are random, so tests assert invariants; tau leaves many segments."""
    first = Segmenter.from_pretrained(checkpoints["sd1"], tau=0.05)
    return {size: Segmenter(first.backbone, first.settings, batch_size=size) for size in (1, 3, 4)}


def check_partition(segmentation: Segmentation, size: tuple[int, int]) -> None:
    assert segmentation.labels.shape == size
    assert segmentation.labels.dtype == np.uint16
    labelled = segmentation.labels[segmentation.labels != IGNORE]
    assert np.array_equal(np.unique(labelled), np.arange(len(segmentation.segments)))
    assert [segment.id for segment in segmentation.segments] == [*range(len(segmentation.segments))]
    assert sum(segment.area for segment in segmentation.segments) == labelled.size
    assert 0 <= segmentation.confidence <= 1


@pytest.mark.parametrize("fit", ["resize", "letterbox", "crop"])
def test_every_pixel_of_images_of_any_size_is_labelled(
    fit: Any, segmenters: dict[int, Segmenter], images: list[np.ndarray]
) -> None:
    segmenter = Segmenter(segmenters[1].backbone, settings_of(fit=fit, tau=(0.05,) * 3), batch_size=2)
    for image, segmentation in zip(images, segmenter(images), strict=True):
        height, width = image.shape[:2]
        check_partition(segmentation, (height, width))
        outside = (segmentation.labels == IGNORE).sum()
        assert outside == (height * width - min(height, width) ** 2 if fit == "crop" else 0)


def test_labels_do_not_depend_on_the_batch_size(segmenters: dict[int, Segmenter], images: list[np.ndarray]) -> None:
    alone = [segmenters[1](image) for image in images]
    assert max(len(segmentation.segments) for segmentation in alone) > 10, "one segment would agree with anything"
    for batched in (segmenters[4](images), segmenters[3](images[::-1])[::-1]):
        for expected, segmentation in zip(alone, batched, strict=True):
            # Sums in another order may move a border.
            assert (expected.labels == segmentation.labels).mean() > 0.995
            assert segmentation.confidence == pytest.approx(expected.confidence, abs=1e-3)


@pytest.mark.parametrize(
    "options", [{}, {"flip": True, "method": ("diffseg", "par"), "min_area": 1e-3}], ids=["default", "all"]
)
def test_labels_do_not_depend_on_the_other_images_of_the_batch(
    options: dict[str, Any],
    segmenters: dict[int, Segmenter],
    images: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refinement, "ITERATIONS", 2)  # enough for an influence of other images to show
    settings = settings_of(tau=(0.05,) * 3, **options)
    segmenter, image = Segmenter(segmenters[3].backbone, settings, batch_size=3), images[1]
    batches = ([image], [image, *images[2:4]], [images[0], image], [*images[2:4], image])
    first, *others = (segmenter(batch)[[x is image for x in batch].index(True)] for batch in batches)
    assert len(first.segments) > 5
    for other in others:
        assert np.array_equal(first.labels, other.labels)
        assert first.segments == other.segments
        assert first.confidence == other.confidence


def test_paths_bytes_and_images_give_the_same_labels(
    segmenters: dict[int, Segmenter], images: list[np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(images[0]).save(path)
    with Image.open(path) as opened:
        first, *others = segmenters[1]([images[0], path, str(path), path.read_bytes(), opened])
    assert all(np.array_equal(first.labels, other.labels) for other in others)
    assert segmenters[1]([]) == []


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), dtype=np.uint8), np.zeros((8, 8, 4), dtype=np.uint8), np.zeros((8, 8, 3))]
)
def test_arrays_other_than_rgb_images_are_refused(image: np.ndarray, segmenters: dict[int, Segmenter]) -> None:
    with pytest.raises(ValueError, match=r"image array of .*: expected uint8 \[height, width, 3\]"):
        segmenters[1](image)
    with pytest.raises(ImageError):
        segmenters[1](b"not an image")


def test_an_image_that_overflows_does_not_affect_the_others_of_its_batch(
    segmenters: dict[int, Segmenter], images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = segmenters[3]
    expected = segmenter(images[:3])
    latents = segmenter.backbone.latents

    def overflowing(pixels: torch.Tensor) -> torch.Tensor:
        result = latents(pixels).clone()
        result[1, 2, 3, 4] = torch.inf
        return result

    monkeypatch.setattr(segmenter.backbone, "latents", overflowing)
    first, second, third = segmenter.launch([segmenter.prepare(image) for image in images[:3]]).results()
    assert isinstance(second, NonFiniteError)
    assert np.array_equal(first.labels, expected[0].labels)
    assert np.array_equal(third.labels, expected[2].labels)
    with pytest.raises(NonFiniteError, match="float32 or bfloat16"):
        segmenter(images[:3])


def test_weights_that_are_not_finite_are_detected(checkpoints: dict[str, Path], images: list[np.ndarray]) -> None:
    segmenter = Segmenter.from_pretrained(checkpoints["sd1"])
    segmenter.backbone.checkpoint.unet.mid_block.attentions[0].norm.weight.data[0] = torch.nan
    with pytest.raises(NonFiniteError):
        segmenter(images[0])


@pytest.mark.parametrize("layout", ["sd2", "sdxl", "sdxl-prompt", "textless"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_layout_gives_a_partition(
    layout: str, dtype: Any, checkpoints: dict[str, Path], images: list[np.ndarray]
) -> None:
    segmenter = Segmenter.from_pretrained(checkpoints[layout], dtype=dtype, batch_size=2, tau=0.02)
    for image, segmentation in zip(images[:3], segmenter(images[:3]), strict=True):
        check_partition(segmentation, image.shape[:2])


def test_the_embedded_model_labels_an_image(images: list[np.ndarray]) -> None:
    segmenter = Segmenter.from_pretrained("tiny")
    check_partition(segmenter(images[1]), images[1].shape[:2])


def test_settings_that_are_not_given_come_from_the_checkpoint(segmenters: dict[int, Segmenter]) -> None:
    backbone = segmenters[1].backbone
    default = Segmenter(backbone, SegmenterSettings())
    assert (default.tau, default.timestep, default.resolution) == ((1.1, 1.1, 1.1), 300, 128)
    given = Segmenter(backbone, settings_of(tau=(0.5,), timestep=0, resolution=192))
    assert (given.tau, given.timestep, given.resolution) == ((0.5,), 0, 192)


def test_settings_that_do_not_fit_the_model_are_refused(
    segmenters: dict[int, Segmenter], images: list[np.ndarray]
) -> None:
    backbone, settings = segmenters[1].backbone, segmenters[1].settings
    with pytest.raises(ValueError, match="resolution=100: expected a multiple of 64"):
        Segmenter(backbone, settings_of(resolution=100))
    with pytest.raises(ValueError, match="batch_size=0"):
        Segmenter(backbone, settings, batch_size=0)
    for batch in ([], images[:4]):
        with pytest.raises(ValueError, match="images: expected 1 to 3"):
            segmenters[3].launch([segmenters[3].prepare(image) for image in batch])
