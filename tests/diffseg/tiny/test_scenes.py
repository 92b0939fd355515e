"""Scenes are decided by their seed, exact, dense, and not solved by colour."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import label, maximum_filter

from diffseg.tiny.scenes.leaves import LEAST_AREA, generate_leaves
from diffseg.tiny.scenes.materials import PATTERNS, Fields, random_material
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS, TRAINING_SEEDS, VALIDATION_SEEDS, Scene, generate_scene

Generator = Callable[[int, int], Scene]


def plain(seed: int, size: int) -> Scene:
    return Scene(*generate_leaves(seed, size))


GENERATORS = [pytest.param(plain, id="leaves"), pytest.param(generate_scene, id="scenes")]


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
        assert areas.min() >= LEAST_AREA * size * size


@pytest.mark.parametrize("generate", GENERATORS)
def test_the_seed_decides_everything(generate: Generator) -> None:
    scene = generate(3, 128)
    np.random.seed(1)  # global state must not matter
    generate(2, 64)
    again = generate(3, 128)
    np.testing.assert_array_equal(again.image, scene.image)
    np.testing.assert_array_equal(again.labels, scene.labels)
    assert (generate(4, 128).labels != scene.labels).any()


@pytest.mark.parametrize(("generate", "few", "many"), [(plain, 8, 20), (generate_scene, 4, 9)])
def test_scenes_vary_in_their_number_of_regions(generate: Generator, few: int, many: int) -> None:
    counts = [int(generate(seed, 128).labels.max()) + 1 for seed in range(40)]
    assert min(counts) < few
    assert max(counts) > many
    assert max(counts) < 255  # the pool keeps labels in one byte


@pytest.mark.parametrize(("generate", "ratio"), [(plain, 1.5), (generate_scene, 1.4)])
def test_labels_follow_the_image(generate: Generator, ratio: float) -> None:
    """Neighbours across a border differ more than neighbours inside a region: the mask is that of this very image."""
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
        scene = plain(seed, 128)
        areas = np.bincount(scene.labels.ravel())
        means = np.stack(
            [np.bincount(scene.labels.ravel(), scene.image[..., c].ravel()) / areas for c in range(3)], axis=1
        )[areas > 100]
        distance = np.linalg.norm(means[:, None] - means[None], axis=-1) + 1e3 * np.eye(len(means))
        close += int((distance.min(1) < 12).any())
    assert close >= 5


def test_regions_of_scenes_hold_edges_of_their_own_and_may_be_in_pieces() -> None:
    """What sets them apart from dead leaves: the strongest edges of an image lie inside a region as often as not."""
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
def test_a_pattern_gives_shares_or_whole_numbers_anywhere(name: str) -> None:
    fields = Fields.draw(np.random.default_rng(0), 64)
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


def test_a_material_is_the_same_wherever_it_is_read_from() -> None:
    """Colours are a function of place, so that a thing's pieces match where they meet."""
    fields = Fields.draw(np.random.default_rng(0), 64)
    y, x = np.random.default_rng(1).random((2, 500)).astype(np.float32)
    for seed in range(10):
        material = random_material(np.random.default_rng(seed))
        whole = material.paint(y, x, fields)
        assert whole.shape == (500, 3)
        np.testing.assert_array_equal(material.paint(y[100:200], x[100:200], fields), whole[100:200])


def test_seed_ranges_never_meet() -> None:
    ranges = [TRAINING_SEEDS, VALIDATION_SEEDS, HELD_OUT_SEEDS]
    assert all(a.stop <= b.start for a, b in itertools.pairwise(ranges))
    assert generate_scene(HELD_OUT_SEEDS[0], 64).labels.max() > 0


def test_refuses_a_size_without_room() -> None:
    with pytest.raises(ValueError, match="16"):
        generate_scene(0, 8)
