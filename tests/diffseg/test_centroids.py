"""k-means by cosines against a loop, and centroids of names and of the background on planted segments."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from diffseg.centroids import k_means, unit
from diffseg.reference_state import BACKGROUND_OWNER, References, ReferencesError, read_references
from diffseg.references import Elimination, ImageSegments, background_centroids, centroids_of, fit_references

SIZE = 16
DIRECTIONS = np.eye(SIZE)


def noisy(directions: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Return `count` vectors near each direction, of lengths between 0.5 and 2."""
    generator = np.random.default_rng(seed)
    vectors = np.repeat(directions, count, axis=0)
    vectors = vectors + 0.05 * generator.standard_normal(vectors.shape)
    return vectors * generator.uniform(0.5, 2, (len(vectors), 1))


def test_centroids_are_the_directions_of_planted_groups_and_means_of_their_vectors() -> None:
    vectors = noisy(DIRECTIONS[:3], 20)
    centroids = k_means(vectors, 3)
    groups = (centroids @ DIRECTIONS[:3].T).argmax(axis=1)
    assert sorted(groups) == [0, 1, 2]
    for centroid, group in zip(centroids, groups, strict=True):
        members = [vector / np.sqrt(sum(vector * vector)) for vector in vectors[20 * group : 20 * group + 20]]
        total = sum(members)
        np.testing.assert_allclose(centroid, total / np.sqrt(sum(total * total)), atol=1e-12)


def test_the_order_of_vectors_changes_no_bit_and_copies_no_group() -> None:
    vectors = np.random.default_rng(1).standard_normal((60, SIZE))
    shuffled = vectors[np.random.default_rng(2).permutation(60)]
    assert k_means(vectors, 7).tobytes() == k_means(shuffled, 7).tobytes()
    groups = noisy(DIRECTIONS[:2], 5)
    copied = k_means(np.concatenate([groups, groups]), 2)
    np.testing.assert_allclose(copied, k_means(groups, 2), atol=1e-12)


def test_a_solution_is_stable_and_better_than_one_centroid() -> None:
    rows = unit(np.random.default_rng(3).standard_normal((80, SIZE)))
    centroids = k_means(rows, 10)
    nearest = (rows @ centroids.T).argmax(axis=1)
    again = unit(np.stack([rows[nearest == number].mean(axis=0) for number in range(len(centroids))]))
    np.testing.assert_allclose(again, centroids, atol=1e-12)
    assert (rows @ centroids.T).max(axis=1).mean() > (rows @ k_means(rows, 1).T).mean() + 0.2


def test_there_are_no_more_centroids_than_directions() -> None:
    assert len(k_means(np.stack([DIRECTIONS[0], 2 * DIRECTIONS[0], DIRECTIONS[1]]), 10)) == 2
    assert k_means(np.zeros((2, SIZE)), 3).shape == (1, SIZE)


def planted_images(prefix: str, direction: int, *, count: int = 6) -> list[ImageSegments]:
    """Return images of an object in one of two looks, with grass or water around it."""
    images = []
    for number in range(count):
        look = DIRECTIONS[direction + number % 2] + 0.4 * DIRECTIONS[8 + direction]
        around = DIRECTIONS[4 + number % 2]
        noise = 0.02 * np.random.default_rng(number + 100 * direction).standard_normal((2, SIZE))
        name = f"{prefix}{number}"
        images.append(ImageSegments(key=name, features=np.stack([around, look]) + noise, names=(prefix,)))
    return images


IMAGES = {"car": planted_images("car", 0), "dog": planted_images("dog", 2)}
STEP = Elimination(alike=0.5)


def references_of(centroids: int, background: int) -> References:
    means = {"car": unit(DIRECTIONS[0] + DIRECTIONS[1]), "dog": unit(DIRECTIONS[2] + DIRECTIONS[3])}
    _, seeds = fit_references(IMAGES, [], STEP)
    seeds = {name: [dataclasses.replace(seed, segment=1) for seed in of] for name, of in seeds.items()}
    vectors, owners = centroids_of(IMAGES, seeds, ["car", "dog"], centroids)
    others, none = background_centroids([image for of in IMAGES.values() for image in of], means, background or 1)
    if background:
        vectors, owners = np.concatenate([vectors, others]), np.concatenate([owners, none])
    mean = np.zeros(SIZE, np.float32)
    return References(names=("car", "dog"), vectors=vectors, owners=owners, mean=mean, bound={"a": 1}, settings={})


def test_a_segment_gets_the_name_of_the_nearest_centroid_and_background_where_that_is_nearest() -> None:
    references = references_of(2, 2)
    assert references.owners is not None
    assert references.owners.tolist() == [0, 0, 1, 1, BACKGROUND_OWNER, BACKGROUND_OWNER]
    segments = np.concatenate([DIRECTIONS[:4], DIRECTIONS[4:6]])
    names = [name for name, _ in references.name_segments(segments)]
    assert names == ["car", "car", "dog", "dog", "background", "background"]
    expected = np.stack([(segments @ references.vectors[[a, a + 1]].T).max(axis=1) for a in (0, 2)], axis=1)
    np.testing.assert_allclose(references.cosines(segments), expected, atol=1e-6)
    assert [name for name, _ in references.name_segments(segments[:1], ["dog"])] == ["dog"]
    without = references_of(2, 0).name_segments(segments[4:])
    assert {name for name, _ in without} <= {"car", "dog"}


def test_thresholds_and_images_without_names_give_background_or_no_name() -> None:
    references = references_of(1, 0)
    segment = DIRECTIONS[:1] + DIRECTIONS[15:]  # the cosine with a car is about 0.46
    (name, score), *_ = references.name_segments(segment)
    assert name == "car"
    assert 0.4 < score < 0.5
    assert references.name_segments(segment, background_below=0.6) == [("background", score)]
    assert references.name_segments(segment, ignore_below=0.6) == [(None, score)]
    assert references.name_segments(segment, ["horse"]) == [("background", 1.0)]


def test_known_background_is_taken_and_images_full_of_names_give_none() -> None:
    means = {"car": DIRECTIONS[0], "dog": DIRECTIONS[2]}
    known = ImageSegments(key="a", features=DIRECTIONS[[0, 4, 5]], names=("car",), background=(1, 2))
    full = ImageSegments(key="b", features=DIRECTIONS[[0, 6]], names=("car", "dog"))
    vectors, owners = background_centroids([known, full, known], means, 25)
    assert len(vectors) == len(owners) == 2
    assert sorted(vectors.argmax(axis=1)) == [4, 5]
    vectors, owners = background_centroids([full], means, 25)
    assert vectors.shape == (0, SIZE)
    assert owners.shape == (0,)


def test_several_centroids_survive_a_file_and_damaged_ones_are_refused() -> None:
    references = references_of(2, 2)
    read = read_references(references.to_bytes(), "x")
    assert read.to_bytes() == references.to_bytes()
    assert read.has_background
    bad = dataclasses.replace(references, owners=np.array([0, 1, 2, 0, 0, 0]))
    with pytest.raises(ValueError, match="2 names do not fit its tensors"):
        read_references(bad.to_bytes(), "x")


def test_references_of_other_passes_are_refused_with_what_differs() -> None:
    references = references_of(1, 0)
    references.check_fits({"a": 1})
    with pytest.raises(ReferencesError, match="a: 1 in the references, 2 in this run"):
        references.check_fits({"a": 2})
    with pytest.raises(ReferencesError, match="b: None in the references"):
        references.check_fits({"a": 1, "b": {}})
