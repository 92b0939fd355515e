"""Generated scenes: determined by the seed, with exact and dense labels, and not solvable by colour alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import label, maximum_filter

from diffseg.tiny.scenes.leaves import MIN_AREA, generate_leaves
from diffseg.tiny.scenes.materials import random_material
from diffseg.tiny.scenes.noise import NoiseFields
from diffseg.tiny.scenes.patterns import PATTERNS
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS, TRAINING_SEEDS, VALIDATION_SEEDS, Scene, generate_scene

Generator = Callable[[int, int], Scene]


def leaves_scene(seed: int, size: int) -> Scene:
    return Scene(*generate_leaves(seed, size))


GENERATORS = [pytest.param(leaves_scene, id="leaves"), pytest.param(generate_scene, id="scenes")]


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("generate", GENERATORS)
def test_a_scene_is_an_image_and_dense_labels(generate: Generator, size: int) -> None:
    for seed in range(8):
        scene = generate(seed, size)
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.labels.shape == (size, size)
        assert scene.labels.dtype == np.uint16
        ids, areas = np.unique(scene.labels, return_counts=True)
        np.testing.assert_array_equal(ids, np.arange(len(ids)))
        assert areas.min() >= MIN_AREA * size * size


@pytest.mark.parametrize("generate", GENERATORS)
def test_the_seed_determines_everything(generate: Generator) -> None:
    scene = generate(3, 128)
    np.random.seed(1)  # global state must not matter
    generate(2, 64)
    again = generate(3, 128)
    np.testing.assert_array_equal(again.image, scene.image)
    np.testing.assert_array_equal(again.labels, scene.labels)
    assert (generate(4, 128).labels != scene.labels).any()


@pytest.mark.parametrize(("generate", "few", "many"), [(leaves_scene, 8, 20), (generate_scene, 4, 9)])
def test_scenes_vary_in_their_number_of_regions(generate: Generator, few: int, many: int) -> None:
    counts = [int(generate(seed, 128).labels.max()) + 1 for seed in range(40)]
    assert min(counts) < few
    assert max(counts) > many
    assert max(counts) < 255  # because the pool stores labels in one byte


@pytest.mark.parametrize(("generate", "ratio"), [(leaves_scene, 1.5), (generate_scene, 1.4)])
def test_labels_follow_the_image(generate: Generator, ratio: float) -> None:
    """Neighbouring pixels differ more across a border than inside a region, so the labels belong to this image."""
    across, inside = [], []
    for seed in range(12):
        scene = generate(seed, 256)
        difference = np.abs(np.diff(scene.image.astype(float), axis=1)[:, 4:-4:8]).mean(-1)
        border = np.diff(scene.labels.astype(int), axis=1)[:, 4:-4:8] != 0
        across.append(difference[border].mean() if border.any() else np.nan)
        inside.append(difference[~border].mean())
    assert np.nanmean(across) > ratio * np.mean(inside)


def test_some_leaves_share_their_mean_colour_with_another() -> None:
    close = 0
    for seed in range(20):
        scene = leaves_scene(seed, 128)
        areas = np.bincount(scene.labels.ravel())
        means = np.stack(
            [np.bincount(scene.labels.ravel(), scene.image[..., c].ravel()) / areas for c in range(3)], axis=1
        )[areas > 100]
        distance = np.linalg.norm(means[:, None] - means[None], axis=-1) + 1e3 * np.eye(len(means))
        close += int((distance.min(1) < 12).any())
    assert close >= 5


def test_regions_of_scenes_contain_edges_and_may_have_several_pieces() -> None:
    """Unlike in dead leaves, at least half of the strongest edges of an image lie inside regions."""
    inside, pieces = [], 0
    for seed in range(20):
        scene = generate_scene(seed, 128)
        edges = np.abs(np.diff(scene.image.astype(float), axis=1)).mean(-1)
        border = maximum_filter(np.diff(scene.labels.astype(int), axis=1) != 0, 3)
        inside.append((~border)[edges > np.quantile(edges, 0.95)].mean())
        pieces += sum(label(scene.labels == k)[1] > 1 for k in range(scene.labels.max() + 1))
    assert np.mean(inside) > 0.5
    assert pieces > 20


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_returns_positions_or_indices_everywhere(name: str) -> None:
    fields = NoiseFields.draw(np.random.default_rng(0), 64)
    v, u = np.random.default_rng(1).uniform(-50, 50, (2, 4000)).astype(np.float32)
    for seed in range(5):
        amount = PATTERNS[name](np.random.default_rng(seed))(v, u, fields)
        assert amount.shape == (4000,)
        assert np.isfinite(amount).all()
        assert len(np.unique(amount)) > 1
        if amount.dtype.kind == "i":
            assert amount.min() >= 0
        else:
            assert amount.min() >= -1e-6
            assert amount.max() <= 1 + 1e-6


def test_the_colour_of_a_point_does_not_depend_on_the_other_points() -> None:
    """Otherwise the pieces of an object would not match where they meet."""
    fields = NoiseFields.draw(np.random.default_rng(0), 64)
    y, x = np.random.default_rng(1).random((2, 500)).astype(np.float32)
    for seed in range(10):
        material = random_material(np.random.default_rng(seed))
        whole = material.paint(y, x, fields)
        assert whole.shape == (500, 3)
        np.testing.assert_array_equal(material.paint(y[100:200], x[100:200], fields), whole[100:200])


def test_seed_ranges_are_disjoint() -> None:
    ranges = [TRAINING_SEEDS, VALIDATION_SEEDS, HELD_OUT_SEEDS]
    assert all(a.stop <= b.start for a, b in itertools.pairwise(ranges))
    assert generate_scene(HELD_OUT_SEEDS[0], 64).labels.max() > 0


def test_a_size_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="16"):
        generate_scene(0, 8)
