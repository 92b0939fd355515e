"""Scores of names against counting by hand; the shipped model names held-out scenes, and random weights do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from diffseg.tiny.evaluation.names import Named, Namer, figures_of, name_rows, names_table, summary
from diffseg.tiny.evaluation.samples import Choice, Sample, captioned_samples, chosen
from diffseg.tiny.evaluation.untrained import UNTRAINED_TAU, write_untrained
from diffseg.tiny.recipe.text_settings import TEXT_CHECKPOINT
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS
from diffseg.tiny.scenes.vocabulary import NOUNS


@pytest.fixture(scope="module")
def held_out() -> Sequence[Sample]:
    # Not the ones of the published table: a floor on those would invite tuning on them.
    return captioned_samples(HELD_OUT_SEEDS[1000:1010], 256)


def test_figures_are_what_counting_gives() -> None:
    truth = np.array([[0, 0, 0, 3], [0, 0, 3, 3]], np.uint16)
    labels = np.array([[0, 0, 1, 1], [0, 2, 1, 1]], np.uint16)
    alone = np.array([[0, 0, 5, 3], [0, 0, 3, 3]], np.uint8)
    named = Named(regions=[0, 5], labels=labels, segments=np.array([0, 3, 5], np.uint8), alone=alone)
    right, segments, chance, *ious = summary(figures_of(named, truth, 4))
    assert (right, segments, chance) == (1 / 2, 2 / 3, 1 / 4)
    # sky 3 of 5, sand 3 of 4, brick wall 0 of 1; alone 4 of 5, 3 of 3, 0 of 1; by true names 4 of 5 and 3 of 4
    np.testing.assert_allclose(ious, [(3 / 5 + 3 / 4) / 3, (4 / 5 + 1) / 3, (4 / 5 + 3 / 4) / 2])


def test_sums_over_images_weigh_regions_and_pixels_alike() -> None:
    truth = np.zeros((10, 10), np.uint16)
    right = Named(regions=[0], labels=truth, segments=np.array([0], np.uint8), alone=truth.astype(np.uint8))
    wrong = Named(regions=[1], labels=truth, segments=np.array([1], np.uint8), alone=truth.astype(np.uint8))
    sums = sum(figures_of(named, truth, 2) for named in (right, right, wrong))
    np.testing.assert_allclose(summary(sums), [2 / 3, 2 / 3, 1 / 2, (2 / 3 + 0) / 2, 1, 1])


def test_captioned_scenes_are_a_set_of_their_own() -> None:
    sets = chosen(Choice(images=1, captioned=2, size=64))
    assert list(sets) == ["held-out scenes: 1 images", "held-out captioned scenes: 2 images"]
    _, truth = sets["held-out captioned scenes: 2 images"][0].load()
    assert truth.dtype == np.uint16
    assert truth.max() < len(NOUNS)
    with pytest.raises(ValueError, match="captioned=-1"):
        Choice(captioned=-1)


def test_the_shipped_model_names_and_random_weights_do_not(held_out: Sequence[Sample], tmp_path: Path) -> None:
    write_untrained(tmp_path / "twin", TEXT_CHECKPOINT, seed=0)
    trained, random = ("trained", TEXT_CHECKPOINT, {}), ("random", tmp_path / "twin", {"tau": UNTRAINED_TAU})
    found = [*name_rows([trained], held_out, tmp_path), *name_rows([random], held_out[:3], tmp_path)]
    rows = {(row.model, row.names): row.scores for row in found}
    own, everything = rows["trained", "own"], rows["trained", "all 18"]
    # Measured .95, .91, .77, .81 and .87 here: a token, a map or a vote that is wrong falls below.
    assert own["true regions right"].mean > 0.85
    assert own["segments right"].mean > 0.8
    assert own["mIoU, segments and names"].mean > 0.67
    assert own["mIoU, cross-attention alone"].mean > 0.7
    assert everything["true regions right"].mean > 0.75
    assert rows["random", "all 18"]["true regions right"].mean < 0.3
    assert names_table(found).count("\n") == 5


def test_a_scene_and_its_mirror_image_have_the_same_names(held_out: Sequence[Sample]) -> None:
    """Of the true regions nearly all, so that names follow what shows and not where."""
    namer = Namer(TEXT_CHECKPOINT)
    same = []
    for sample in held_out[:3]:
        image, truth = sample.load()
        pair = [
            namer(np.ascontiguousarray(a), b, range(18)) for a, b in ((image, truth), (image[:, ::-1], truth[:, ::-1]))
        ]
        same += [a == b for a, b in zip(pair[0].regions, pair[1].regions, strict=True)]
    assert np.mean(same) > 0.75
