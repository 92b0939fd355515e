"""Captioned scenes: determined by the seed, with exact classes, and captions that name the visible classes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np
import pytest

from diffseg.tiny.recipe.text_settings import training_caption
from diffseg.tiny.scenes.captioned import MIN_SHARE, CaptionedScene, generate_captioned, visible_classes
from diffseg.tiny.scenes.grounds import GROUNDS
from diffseg.tiny.scenes.materials import OPPONENT
from diffseg.tiny.scenes.noise import NoiseFields
from diffseg.tiny.scenes.noun_things import NOUN_THINGS
from diffseg.tiny.scenes.scenes import VALIDATION_SEEDS
from diffseg.tiny.scenes.vocabulary import NOUNS, OBJECTS, PREFIXES, STUFF, Caption, compose_caption


@pytest.fixture(scope="module")
def scenes() -> Sequence[CaptionedScene]:
    return [generate_captioned(seed, 128) for seed in VALIDATION_SEEDS[:60]]


def test_every_noun_can_be_painted_and_half_of_the_nouns_have_two_words() -> None:
    assert (tuple(GROUNDS), tuple(NOUN_THINGS)) == (STUFF, OBJECTS)
    assert len(set(NOUNS)) == 18
    assert sum(" " in noun for noun in NOUNS) == 9


def test_the_seed_determines_everything() -> None:
    first = generate_captioned(5, 96)
    np.random.seed(1)  # global state must not matter
    again, other = generate_captioned(5, 96), generate_captioned(6, 96)
    np.testing.assert_array_equal(again.image, first.image)
    np.testing.assert_array_equal(again.classes, first.classes)
    assert again.caption == first.caption
    assert (other.image != first.image).any()
    with pytest.raises(ValueError, match="16"):
        generate_captioned(0, 8)


def test_a_scene_has_an_image_classes_and_dense_labels(scenes: Sequence[CaptionedScene]) -> None:
    for scene in scenes:
        assert (scene.image.shape, scene.image.dtype) == ((128, 128, 3), np.uint8)
        assert (scene.classes.shape, scene.classes.dtype) == ((128, 128), np.uint8)
        present = np.unique(scene.classes)
        assert present.max() < len(NOUNS)
        assert 1 <= (present < len(STUFF)).sum() <= 2
        assert scene.labels.dtype == np.uint16
        np.testing.assert_array_equal(present[scene.labels], scene.classes)
    assert np.unique(np.concatenate([scene.classes.ravel() for scene in scenes])).tolist() == list(range(len(NOUNS)))


def test_captions_name_all_visible_nouns_and_no_others_in_any_order(scenes: Sequence[CaptionedScene]) -> None:
    named = [scene for scene in scenes if scene.caption.pieces]
    assert 0 < len(scenes) - len(named) < 20
    for scene in named:
        shares = np.bincount(scene.classes.ravel(), minlength=len(NOUNS)) / scene.classes.size
        assert sorted(scene.caption.classes) == np.flatnonzero(shares >= MIN_SHARE).tolist()
        rest = scene.caption.text
        for noun in sorted((NOUNS[c] for c in scene.caption.classes), key=len, reverse=True):
            assert noun in rest
            rest = rest.replace(noun, "", 1)
        assert not any(noun in rest for noun in NOUNS), rest
        rest = re.sub(r"\band\b|,", "", rest).strip()
        assert rest in ("", *PREFIXES)
    assert any(list(scene.caption.classes) != sorted(scene.caption.classes) for scene in named)
    assert {"and" in scene.caption.text.split() for scene in named} == {True, False}
    assert {"," in scene.caption.text for scene in named} == {True, False}


def test_labels_follow_the_image(scenes: Sequence[CaptionedScene]) -> None:
    across, inside = [], []
    for scene in scenes:
        difference = np.abs(np.diff(scene.image.astype(float), axis=1)).mean(-1)
        border = np.diff(scene.classes.astype(int), axis=1) != 0
        across.append(difference[border].mean())
        inside.append(difference[~border].mean())
    assert np.mean(across) > 2 * np.mean(inside)


def test_colour_alone_does_not_identify_the_noun() -> None:
    """The mean colours of some pairs of nouns overlap, because their spread is as large as their distance."""
    fields = NoiseFields.draw(np.random.default_rng(0), 64)
    v, u = (grid.ravel().astype(np.float32) for grid in np.mgrid[-0.4:0.4:20j, -0.4:0.4:20j])

    def colours(noun: str) -> np.ndarray:
        rngs = map(np.random.default_rng, range(12))
        paints = (GROUNDS[noun](rng) if noun in GROUNDS else NOUN_THINGS[noun](rng).paint for rng in rngs)
        return np.stack([(paint(v, u, fields) @ OPPONENT).mean(0) for paint in paints])

    means = {noun: colours(noun) for noun in NOUNS}

    def separation(a: str, b: str) -> float:
        spread = np.sqrt((means[a].var(0) + means[b].var(0)).sum())
        return float(np.linalg.norm(means[a].mean(0) - means[b].mean(0)) / spread)

    close = [pair for pair in itertools.combinations(NOUNS, 2) if separation(*pair) < 1]
    assert len(close) >= 5, close
    assert separation("lava", "snow") > 2


def test_visible_classes_cover_enough_area_and_are_in_the_vocabulary() -> None:
    classes = np.full((50, 50), 200, np.uint8)
    classes[0, :20] = 3  # 20 of 2500 pixels is exactly the smallest share
    classes[1, :19] = 4
    assert visible_classes(classes) == [3]


def test_training_captions_omit_nouns_and_only_clean_samples_name_absent_ones() -> None:
    rng = np.random.default_rng(0)
    shown = [1, 5, 9]
    noisy = [set(training_caption(rng, shown, clean=False).classes) for _ in range(200)]
    clean = [set(training_caption(rng, shown, clean=True).classes) for _ in range(200)]
    assert all(named <= set(shown) for named in noisy)
    assert any(0 < len(named) < 3 for named in noisy)
    more = [len(named - set(shown)) for named in clean]
    assert 60 < sum(count > 0 for count in more) < 120
    assert max(more) > 12


def test_an_empty_caption_names_nothing() -> None:
    assert (Caption().text, Caption().classes) == ("", ())
    assert compose_caption(np.random.default_rng(0), []) == Caption()
