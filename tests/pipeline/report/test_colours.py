"""Colours of the page: conversion, lightness of regions that touch, and contacts."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from diffseg.drawing.overlay import BACKGROUND_COLOUR
from pipeline.report.colours import (
    CHROMA,
    LIGHTNESS,
    choose_lightness,
    find_contacts,
    name_colours,
    oklab,
    segment_colours,
    srgb,
)


def parsed(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def test_oklab_agrees_with_its_definition() -> None:
    # White, and red as published with the definition of Oklab.
    np.testing.assert_allclose(oklab((255, 255, 255)), [1, 0, 0], atol=1e-4)
    np.testing.assert_allclose(oklab((255, 0, 0)), [0.628, 0.225, 0.126], atol=1e-3)


@pytest.mark.parametrize("lightness", LIGHTNESS)
def test_colours_keep_their_lightness_and_hue(lightness: float) -> None:
    for hue in np.linspace(-3, 3, 13):
        found, a, b = oklab(srgb(lightness, CHROMA, hue))
        assert found == pytest.approx(lightness, abs=0.01)
        assert math.cos(math.atan2(b, a) - hue) > 0.99
        assert math.hypot(a, b) < CHROMA + 0.01


def test_contacts_are_counted_on_all_sides() -> None:
    regions = np.array([[1, 1, 2], [1, 3, 2]], np.uint8)
    assert find_contacts(regions) == Counter({(1, 2): 1, (1, 3): 2, (2, 3): 1})


def test_segments_that_touch_differ_in_lightness() -> None:
    """Thirty cells of a Voronoi diagram, some of which have seven neighbours."""
    points = np.random.default_rng(0).random((30, 2)) * 200
    y, x = np.mgrid[:200, :200]
    regions = 1 + np.argmin((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2, -1)
    contacts = find_contacts(regions.astype(np.uint8))
    sizes = np.bincount(regions.ravel())
    colours = segment_colours(sorted(range(1, 31), key=lambda region: -sizes[region]), contacts)
    steps = [abs(oklab(parsed(colours[a]))[0] - oklab(parsed(colours[b]))[0]) for a, b in contacts]
    assert min(steps) > 0.08
    assert len(set(colours.values())) == 30


def test_the_nearest_level_is_taken_only_where_all_levels_are_taken() -> None:
    everywhere = dict.fromkeys(itertools.combinations(range(6), 2), 1)
    chosen = choose_lightness(range(6), everywhere)
    assert Counter(chosen.values()).most_common(1)[0][1] == 2
    assert set(chosen.values()) == set(LIGHTNESS)


def test_names_keep_their_hue_and_the_background_is_grey() -> None:
    names = ["road", "sky", "background"]
    touching = name_colours(names, {("road", "sky"): 9, ("background", "sky"): 1})
    apart = name_colours(names, {})
    for colours in (touching, apart):
        _, a, b = oklab(parsed(colours["background"]))
        assert math.hypot(a, b) == pytest.approx(math.hypot(*oklab(BACKGROUND_COLOUR)[1:]), abs=0.01)
    levels = {name: oklab(parsed(colour))[0] for name, colour in touching.items()}
    assert abs(levels["road"] - levels["sky"]) > 0.1
    assert abs(levels["background"] - levels["sky"]) > 0.1
