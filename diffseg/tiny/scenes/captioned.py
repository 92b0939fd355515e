"""Generated scenes of the closed vocabulary: an image, the class of every pixel, and a caption of what shows.

One kind of ground or two, divided by a wavy horizon, before which things stand that hide each other and may cast
shadows; the camera is that of the other scenes. All pixels of a class are one region, as kinds are there. Everything
follows from the seed; the ranges of seeds are those of `diffseg.tiny.scenes.scenes`.

Axes: H, W image. Coordinates are in units of the image's side, y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffseg.tiny.scenes.grounds import GROUNDS
from diffseg.tiny.scenes.materials import Fields
from diffseg.tiny.scenes.noun_things import NOUN_THINGS, NounThing
from diffseg.tiny.scenes.scenes import photograph
from diffseg.tiny.scenes.things import cast_shadow
from diffseg.tiny.scenes.vocabulary import NOUNS, OBJECTS, STUFF, Caption, compose

__all__ = ["LEAST_SHARE", "CaptionedScene", "generate_captioned", "visible"]

Array = np.ndarray

LEAST_SHARE = 0.008  # of the image: what shows less is not in the caption


@dataclass(frozen=True)
class CaptionedScene:
    """An image, what is where, and a caption.

    Attributes:
        image: uint8 [size, size, 3], RGB.
        classes: uint8 [size, size], places in `NOUNS`.
        caption: of the classes that cover `LEAST_SHARE` or more, in random order; at times empty.
    """

    image: Array
    classes: Array
    caption: Caption

    @property
    def labels(self) -> Array:
        """Region ids 0..K-1 in ascending order of their classes, uint16 [size, size]."""
        return np.unique(self.classes, return_inverse=True)[1].reshape(self.classes.shape).astype(np.uint16)


def generate_captioned(seed: int, size: int = 256) -> CaptionedScene:
    """Return the scene of a seed; the same seed and size give the same bytes.

    Args:
        seed: any integer >= 0.
        size: side of the square image in pixels, >= 16.
    """
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    rng = np.random.default_rng([seed, 2])
    fields = Fields.draw(rng, size)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    canvas, classes = _grounds(rng, fields, axis)
    _things(rng, fields, axis, canvas, classes)
    return CaptionedScene(photograph(rng, canvas, fields), classes, compose(rng, visible(classes)))


def visible(classes: Array) -> list[int]:
    """The classes that cover `LEAST_SHARE` of a map or more, ascending; values from `len(NOUNS)` on are none."""
    areas = np.bincount(classes.ravel(), minlength=len(NOUNS))[: len(NOUNS)]
    return np.flatnonzero(areas >= LEAST_SHARE * classes.size).tolist()


def _grounds(rng: np.random.Generator, fields: Fields, axis: Array) -> tuple[Array, Array]:
    """Opponent colours float32 [H, W, 3] and classes uint8 [H, W]."""
    y, x = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    picked = rng.choice(len(STUFF), size=2 if rng.random() < 0.65 else 1, replace=False)
    kinds = sorted(picked.tolist(), key=lambda kind: STUFF[kind] != "sky")  # the sky is above
    horizon = rng.uniform(0.25, 0.75) + rng.normal(0, 0.12) * (x - 0.5)
    horizon += rng.choice([0.0, 0.015, 0.05]) * fields.at(3, np.zeros_like(x), x * 0.7)
    below = y > horizon if len(kinds) > 1 else np.zeros(len(y), bool)
    canvas, classes = np.empty((len(y), 3), np.float32), np.empty(len(y), np.uint8)
    for kind, here in zip(kinds, (~below, below), strict=False):
        canvas[here], classes[here] = GROUNDS[STUFF[kind]](rng)(y[here], x[here], fields), kind
    side = len(axis)
    return canvas.reshape(side, side, 3), classes.reshape(side, side)


def _things(rng: np.random.Generator, fields: Fields, axis: Array, canvas: Array, classes: Array) -> None:
    """Paint one to five things over the grounds, in place; what stands lower stands nearer."""
    count = int(rng.integers(1, 6))
    kinds, heights = rng.integers(len(OBJECTS), size=count), np.sort(rng.uniform(0.08, 0.92, count))
    shadows = rng.random() < 0.5
    for kind, cy in zip(kinds.tolist(), heights.tolist(), strict=True):
        place = (cy, float(rng.uniform(0.05, 0.95)), float(rng.uniform(0.08, 0.25)), float(rng.normal(0, 0.35)))
        thing = NOUN_THINGS[OBJECTS[kind]](rng)
        shadow = (float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))) if shadows else None
        _paint_thing(thing, len(STUFF) + kind, place, shadow, fields, axis, canvas, classes)


def _paint_thing(
    thing: NounThing,
    kind: int,
    place: tuple[float, float, float, float],
    shadow: tuple[float, float] | None,
    fields: Fields,
    axis: Array,
    canvas: Array,
    classes: Array,
) -> None:
    cy, cx, radius, turn = place
    rows, columns = (slice(*map(int, np.searchsorted(axis, [c - 2 * radius, c + 2 * radius]))) for c in (cy, cx))
    y, x = np.meshgrid(axis[rows], axis[columns], indexing="ij")
    dy, dx = (y - cy) / radius, (x - cx) / radius
    v, u = np.cos(turn) * dy - np.sin(turn) * dx, np.sin(turn) * dy + np.cos(turn) * dx
    inside = thing.inside(v, u)
    if shadow is not None:
        cast_shadow(canvas[rows, columns], inside, len(axis) * radius, shadow)
    canvas[rows, columns][inside] = thing.paint(v[inside], u[inside], fields)
    classes[rows, columns][inside] = kind
