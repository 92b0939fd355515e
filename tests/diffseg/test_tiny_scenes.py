"""Scenes are decided by their seed, exact, dense, and not solved by colour."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from diffseg.tiny.scenes import HELD_OUT_SEEDS, LEAST_AREA, TRAINING_SEEDS, VALIDATION_SEEDS, generate_scene


@pytest.mark.parametrize("size", [64, 256])
def test_a_scene_is_an_image_and_dense_labels(size: int) -> None:
    for seed in range(8):
        scene = generate_scene(seed, size)
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.labels.shape == (size, size)
        assert scene.labels.dtype == np.uint16
        ids, areas = np.unique(scene.labels, return_counts=True)
        np.testing.assert_array_equal(ids, np.arange(len(ids)))
        assert areas.min() >= LEAST_AREA * size * size


def test_the_seed_decides_everything() -> None:
    scene = generate_scene(3, 128)
    np.random.seed(1)  # global state must not matter
    generate_scene(2, 64)
    again = generate_scene(3, 128)
    np.testing.assert_array_equal(again.image, scene.image)
    np.testing.assert_array_equal(again.labels, scene.labels)
    assert (generate_scene(4, 128).labels != scene.labels).any()


def test_scenes_vary_in_their_number_of_regions() -> None:
    counts = [int(generate_scene(seed, 128).labels.max()) + 1 for seed in range(40)]
    assert min(counts) < 8
    assert max(counts) > 20
    assert max(counts) < 255  # the pool keeps labels in one byte


def test_labels_follow_the_image() -> None:
    """Neighbours across a border differ more than neighbours inside a region: the mask is that of this very image."""
    across, inside = [], []
    for seed in range(12):
        scene = generate_scene(seed)
        difference = np.abs(np.diff(scene.image.astype(float), axis=1)[:, 4:-4:8]).mean(-1)
        border = np.diff(scene.labels.astype(int), axis=1)[:, 4:-4:8] != 0
        across.append(difference[border].mean())
        inside.append(difference[~border].mean())
    assert np.mean(across) > 1.5 * np.mean(inside)


def test_some_regions_share_their_mean_colour_with_another() -> None:
    close = 0
    for seed in range(20):
        scene = generate_scene(seed, 128)
        areas = np.bincount(scene.labels.ravel())
        means = np.stack(
            [np.bincount(scene.labels.ravel(), scene.image[..., c].ravel()) / areas for c in range(3)], axis=1
        )[areas > 100]
        distance = np.linalg.norm(means[:, None] - means[None], axis=-1) + 1e3 * np.eye(len(means))
        close += int((distance.min(1) < 12).any())
    assert close >= 5


def test_seed_ranges_never_meet() -> None:
    ranges = [TRAINING_SEEDS, VALIDATION_SEEDS, HELD_OUT_SEEDS]
    assert all(a.stop <= b.start for a, b in itertools.pairwise(ranges))
    assert generate_scene(HELD_OUT_SEEDS[0], 64).labels.max() > 0


def test_refuses_a_size_without_room() -> None:
    with pytest.raises(ValueError, match="16"):
        generate_scene(0, 8)
