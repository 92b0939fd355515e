"""Seeds and references on planted archives, whose images all hold the object of a name, against a float64 loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from diffseg import references
from diffseg.affinity.pairs import roc_auc
from diffseg.centroids import unit
from diffseg.reference_state import References, read_references
from diffseg.references import Elimination, ImageSegments, Seed, find_seeds, fit_references

SIZE = 32
"""Numbers of a planted feature."""
NO_CONTEXT = np.empty((0, SIZE))
DIRECTIONS = np.linalg.qr(np.random.default_rng(7).standard_normal((SIZE, 8)))[0].T
OBJECT, DISTRACTOR, OTHER = DIRECTIONS[:3]


def planted(
    seed: int, count: int = 30, *, present: bool = True, distractor: bool = False
) -> tuple[list[ImageSegments], dict[str, int], dict[str, int]]:
    """Return images, and the segment of the object and of the distractor in each; all other segments are random."""
    generator = np.random.default_rng(seed)
    images, objects, distractors = [], {}, {}
    for number in range(count):
        features = generator.standard_normal((generator.integers(4, 12), SIZE)) / SIZE**0.5
        first, second = generator.permutation(len(features))[:2]
        if present:
            features[first] = OBJECT + 0.6 * features[first]
        if distractor:
            features[second] = DISTRACTOR + 0.3 * features[second]
        key = f"{number:03}"
        images.append(ImageSegments(key=key, features=features))
        objects[key], distractors[key] = int(first), int(second)
    return images, objects, distractors


def share_of(seeds: Sequence[Seed], wanted: dict[str, int]) -> float:
    return float(np.mean([seed.segment == wanted[seed.key] for seed in seeds]))


def by_loops(images: Sequence[ImageSegments], contexts: np.ndarray, elimination: Elimination) -> dict[str, np.ndarray]:
    """Return the support of every segment of every image, term by term."""

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(sum(x * y for x, y in zip(a, b, strict=True)) / (sum(a * a) ** 0.5 * sum(b * b) ** 0.5))

    supports = {}
    for image in images:
        sums = []
        for segment in image.features:
            total = 0.0
            for other in images:
                if other is not image:
                    matches = []
                    for candidate in other.features:
                        weight = 1.0
                        for context in contexts:
                            exponent = (cosine(candidate, context) - elimination.alike) / elimination.temperature
                            weight *= 1 - 1 / (1 + np.exp(-exponent))
                        matches.append(cosine(segment, candidate) * weight)
                    total += max(matches)
            sums.append(total / (len(images) - 1))
        supports[image.key] = np.array(sums)
    return supports


def test_supports_are_those_of_a_float64_loop() -> None:
    images, _, _ = planted(0, 5, distractor=True)
    contexts, elimination = np.stack([DISTRACTOR, OTHER]), Elimination(alike=0.3, temperature=0.2)
    wanted = by_loops(images, contexts, elimination)
    for seed in find_seeds(images, contexts, elimination):
        assert seed.segment == wanted[seed.key].argmax()
        assert seed.support == pytest.approx(wanted[seed.key].max(), abs=2e-9)


def test_seeds_hit_the_object_of_the_archive() -> None:
    for number in range(5):
        images, objects, _ = planted(number)
        assert share_of(find_seeds(images, NO_CONTEXT, Elimination()), objects) >= 0.95


def test_a_shared_distractor_wins_without_and_loses_with_context_elimination() -> None:
    images, objects, distractors = planted(1, distractor=True)
    assert share_of(find_seeds(images, NO_CONTEXT, Elimination()), distractors) >= 0.95
    assert share_of(find_seeds(images, DISTRACTOR[None], Elimination()), objects) >= 0.95


def test_a_context_is_learned_from_its_own_images_and_acts_on_the_names_after_it() -> None:
    sky, skies, _ = planted(2)
    sky = [dataclasses.replace(image, features=image.features @ _swap(OBJECT, DISTRACTOR)) for image in sky]
    planes, objects, _ = planted(3, distractor=True)
    found, seeds = fit_references({"plane": planes, "sky": sky}, ["sky"], Elimination())
    assert [*found] == ["sky", "plane"]
    assert share_of(seeds["sky"], skies) >= 0.95
    assert share_of(seeds["plane"], objects) >= 0.95
    assert found["sky"] @ DISTRACTOR > 0.95
    assert found["plane"] @ OBJECT > 0.95
    without, _ = fit_references({"plane": planes, "sky": sky}, [], Elimination())
    assert without["plane"] @ DISTRACTOR > 0.95


def _swap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the reflection that exchanges two orthogonal directions."""
    return np.eye(SIZE) - np.outer(a - b, a - b)


def test_blocks_of_rows_give_what_the_full_matrix_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _, _ = planted(4, distractor=True)
    whole = find_seeds(images, OTHER[None], Elimination())
    for rows in (1, 7, 50):
        monkeypatch.setattr(references, "BLOCK_NUMBERS", rows * sum(len(image.features) for image in images))
        assert find_seeds(images, OTHER[None], Elimination()) == whole


def test_the_order_of_the_archive_changes_no_bit() -> None:
    images, _, _ = planted(5)
    shuffled = [images[number] for number in np.random.default_rng(0).permutation(len(images))]
    results = [fit_references({"a": order}, [], Elimination()) for order in (images, shuffled)]
    assert results[0][1] == results[1][1]
    assert results[0][0]["a"].tobytes() == results[1][0]["a"].tobytes()


def test_copies_of_images_change_no_seed() -> None:
    images, _, _ = planted(6, present=False)
    copies = [dataclasses.replace(image, key=f"{image.key} copy") for image in images[:9] for _ in range(3)]
    assert find_seeds(images + copies, NO_CONTEXT, Elimination()) == find_seeds(images, NO_CONTEXT, Elimination())


def test_a_single_image_supports_all_its_segments_alike_except_contexts() -> None:
    image = ImageSegments(key="a", features=np.stack([DISTRACTOR, OBJECT, OTHER]))
    assert find_seeds([image], NO_CONTEXT, Elimination()) == [Seed(key="a", segment=0, support=1.0)]
    (seed,) = find_seeds([image], DISTRACTOR[None], Elimination())
    assert seed.segment == 1
    assert seed.support == pytest.approx(1, abs=1e-6)


def test_support_tells_names_that_are_in_their_images_from_absent_ones() -> None:
    archives = [planted(number, 12, present=number % 2 == 0)[0] for number in range(40)]
    means = [np.mean([seed.support for seed in find_seeds(images, NO_CONTEXT, Elimination())]) for images in archives]
    assert roc_auc(np.array(means), np.arange(40) % 2 == 0) > 0.99


def test_references_survive_a_file_and_give_cosines_relative_to_the_mean() -> None:
    mean = np.full(SIZE, 0.25, np.float32)
    stored = References(
        names=("a", "b"),
        vectors=np.stack([OBJECT, OTHER]).astype(np.float32),
        mean=mean,
        bound={"timestep": 1},
        settings={"images": 3},
    )
    read = read_references(stored.to_bytes(), "x")
    assert read.to_bytes() == stored.to_bytes()
    assert (read.names, read.bound, read.settings) == (stored.names, stored.bound, stored.settings)
    np.testing.assert_allclose(read.cosines((3 * OBJECT + mean)[None]), [[1, 0]], atol=1e-6)
    assert not read.cosines(mean[None]).any()
    with pytest.raises(ValueError, match="x: is not a file of `diffseg fit references`"):
        read_references(b"something else", "x")


def test_a_zero_vector_resembles_nothing() -> None:
    assert not unit(np.zeros((1, SIZE))).any()


@pytest.mark.parametrize("values", [{"temperature": 0.0}, {"alike": 2.0}])
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="temperature above 0"):
        Elimination(**values)
