"""Baselines segment simple images of any size, and give the same labels every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffseg.scoring.baselines import BASELINES, LEFT_OUT, Clusters, Grid, to_lab
from diffseg.scoring.overlap import covering, overlap
from diffseg.tiny.scenes.scenes import generate_scene

ALL = pytest.mark.parametrize("name", BASELINES)


def flag(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of one upper and two lower fields with a little noise, and its ground truth."""
    truth = np.zeros((height, width), np.uint16)
    truth[height // 2 :, : width // 2] = 1
    truth[height // 2 :, width // 2 :] = 2
    colours = np.array([(200, 40, 40), (40, 160, 60), (230, 230, 220)], np.float32)
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    return np.clip(colours[truth] + noise, 0, 255).astype(np.uint8), truth


def test_all_baselines_exist_with_scikit_image() -> None:
    pytest.importorskip("skimage")
    assert list(BASELINES) == ["one segment", "grid", "k-means", "Felzenszwalb", "SLIC + merging"]
    assert not LEFT_OUT


@ALL
@settings(deadline=None, max_examples=8)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_an_image_of_any_size_is_labelled(name: str, height: int, width: int) -> None:
    labels = BASELINES[name](np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    assert labels.shape == (height, width)
    assert labels.dtype == np.uint16


@ALL
def test_images_of_one_colour_and_of_one_pixel_are_labelled(name: str) -> None:
    assert (BASELINES[name](np.full((1, 1, 3), 7, np.uint8)) == 0).all()
    assert BASELINES[name](np.full((70, 90, 3), 7, np.uint8)).shape == (70, 90)


@ALL
def test_the_same_image_gets_the_same_labels(name: str) -> None:
    image = generate_scene(0, 96).image
    np.testing.assert_array_equal(BASELINES[name](image), BASELINES[name](image))


@pytest.mark.parametrize("name", ["Felzenszwalb", "SLIC + merging"])
@pytest.mark.parametrize("size", [(120, 100), (300, 400)])
def test_fields_of_uniform_colour_are_segmented(name: str, size: tuple[int, int]) -> None:
    if name not in BASELINES:
        pytest.skip("needs scikit-image")
    image, truth = flag(*size)
    assert covering(overlap(truth, BASELINES[name](image))) > 0.9


def test_one_segment_covers_all_and_a_grid_has_equal_cells() -> None:
    image = np.zeros((5, 8, 3), np.uint8)
    assert (BASELINES["one segment"](image) == 0).all()
    labels = Grid(rows=2, columns=4)(image)
    np.testing.assert_array_equal(labels[0], [0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(labels[:, 0], [0, 0, 0, 4, 4])


def test_clusters_follow_colour() -> None:
    halves = np.zeros((64, 50, 3), np.uint8)
    halves[:, 24:] = (0, 200, 0)
    labels = Clusters(clusters=2)(halves)
    assert (labels[:, :24] == labels[0, 0]).all()
    assert (labels[:, 24:] == 1 - labels[0, 0]).all()


def test_lab_agrees_with_scikit_image() -> None:
    color = pytest.importorskip("skimage.color")
    image = generate_scene(0, 64).image
    np.testing.assert_allclose(to_lab(image), color.rgb2lab(image), atol=0.02)
