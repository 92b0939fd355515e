"""Colours of the page: regions that touch differ in lightness, so that hue is not needed to tell them apart.

Colours are chosen by lightness, chroma and hue in Oklab (Björn Ottosson, "A perceptual color space for image
processing", 2020), in which equal steps of lightness look equal. They are independent of the palette of label PNGs.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

from diffseg.drawing.overlay import GOLDEN_TURN, class_colour, hexadecimal

Region = TypeVar("Region", bound=Hashable)

LIGHTNESS = (0.66, 0.88, 0.44, 0.77, 0.55)
"""Lightness levels in Oklab, 0 to 1, in the order in which they are tried."""
CHROMA = 0.19
"""Largest chroma. Light colours have less, because sRGB holds no more."""

# Matrices of Oklab's definition: from linear sRGB to cone responses, and from their cube roots to L, a, b.
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


_FROM_LAB, _FROM_CONES = np.linalg.inv(_LAB), np.linalg.inv(_CONES)


def oklab(colour: Sequence[int]) -> np.ndarray:
    """Return lightness, a and b of an sRGB colour of three numbers from 0 to 255."""
    values = np.asarray(colour, float) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return _LAB @ np.cbrt(_CONES @ linear)


@lru_cache(maxsize=4096)
def srgb(lightness: float, chroma: float, hue: float) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of a colour; its chroma is reduced until sRGB holds it.

    Args:
        lightness: Lightness in Oklab, 0 to 1.
        chroma: Largest chroma.
        hue: Hue in radians.
    """
    while True:
        lab = np.array([lightness, chroma * math.cos(hue), chroma * math.sin(hue)])
        linear = _FROM_CONES @ (_FROM_LAB @ lab) ** 3
        if chroma == 0 or (linear.min() >= 0 and linear.max() <= 1):
            break
        chroma = max(0.0, chroma - 0.01)
    linear = linear.clip(0, 1)
    values = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = np.rint(255 * values).astype(int).tolist()
    return red, green, blue


def find_contacts(regions: np.ndarray) -> Counter[tuple[int, int]]:
    """Count the pairs of neighbouring pixels that belong to two regions, by the regions, the smaller number first.

    Args:
        regions: Number of the region of each pixel, uint8 [H, W].
    """
    pairs: Counter[tuple[int, int]] = Counter()
    for first, second in ((regions[:, :-1], regions[:, 1:]), (regions[:-1], regions[1:])):
        differ = first != second
        one, other = first[differ].astype(int), second[differ].astype(int)
        codes, counts = np.unique(np.minimum(one, other) * 256 + np.maximum(one, other), return_counts=True)
        pairs.update({divmod(code, 256): count for code, count in zip(codes.tolist(), counts.tolist(), strict=True)})
    return pairs


def choose_lightness(regions: Sequence[Region], contacts: Mapping[tuple[Region, Region], int]) -> dict[Region, float]:
    """Choose one of the levels of `LIGHTNESS` for each region, so that regions that touch have different levels.

    Each region gets the level that the fewest contacts with regions before it share, then the one with the fewest
    contacts one level away, and so on. Five levels suffice for almost all images.

    Args:
        regions: The regions, the most important first.
        contacts: How much two regions touch, by pair.
    """
    levels = {value: rank for rank, value in enumerate(sorted(LIGHTNESS))}
    neighbours: defaultdict[Region, dict[Region, int]] = defaultdict(dict)
    for (one, other), count in contacts.items():
        neighbours[one][other] = neighbours[other][one] = count
    chosen: dict[Region, float] = {}
    for number, region in enumerate(regions):
        taken = [0] * len(LIGHTNESS)  # contacts by level
        for other, count in neighbours[region].items():
            if other in chosen:
                taken[levels[chosen[other]]] += count
        costs = {}
        for attempt in range(len(LIGHTNESS)):
            value = LIGHTNESS[(number + attempt) % len(LIGHTNESS)]
            by_distance = [0] * len(LIGHTNESS)
            for level, count in enumerate(taken):
                by_distance[abs(level - levels[value])] += count
            costs[value] = by_distance
        chosen[region] = min(costs, key=costs.__getitem__)
    return chosen


def segment_colours(regions: Sequence[int], contacts: Mapping[tuple[int, int], int]) -> dict[int, str]:
    """Return the colour of each segment of an image as #rrggbb.

    Args:
        regions: Numbers of the segments, the largest segment first.
        contacts: What `find_contacts` returns for the image.
    """
    lightness = choose_lightness(regions, contacts)
    hues = {region: 2 * math.pi * (0.08 + rank * GOLDEN_TURN) for rank, region in enumerate(regions)}
    return {region: hexadecimal(srgb(lightness[region], CHROMA, hues[region])) for region in regions}


def name_colours(names: Sequence[str], contacts: Mapping[tuple[str, str], int]) -> dict[str, str]:
    """Return the colour of each name as #rrggbb: the hue of `class_colour`, with another lightness.

    Args:
        names: Names of segments, the most frequent first.
        contacts: Number of images in which segments of two names touch, by pair of names.
    """
    lightness = choose_lightness(names, contacts)
    colours = {}
    for name in names:
        _, a, b = oklab(class_colour(name))
        colours[name] = hexadecimal(srgb(lightness[name], min(CHROMA, math.hypot(a, b)), math.atan2(b, a)))
    return colours
