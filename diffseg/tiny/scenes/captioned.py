"""Generated scenes of the closed vocabulary: an image, the class of every pixel, and a caption of the visible classes.

A scene has one kind of ground, or two that are divided by a wavy horizon. Objects in front of it occlude each other and
may cast shadows. The camera is that of the other scenes, and all pixels of a class form one region, as all objects of
one kind do in the other scenes. The seed determines everything; the ranges of seeds are those of
`diffseg.tiny.scenes.scenes`.

Axes: H, W image. Coordinates are in units of the image's side, y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffseg.tiny.scenes.grounds import GROUNDS
from diffseg.tiny.scenes.noise import NoiseFields
from diffseg.tiny.scenes.noun_things import NOUN_THINGS, NounThing
from diffseg.tiny.scenes.scenes import apply_camera
from diffseg.tiny.scenes.things import cast_shadow
from diffseg.tiny.scenes.vocabulary import NOUNS, OBJECTS, STUFF, Caption, compose_caption

__all__ = ["MIN_SHARE", "CaptionedScene", "generate_captioned", "visible_classes"]

Array = np.ndarray

MIN_SHARE = 0.008
"""Smallest share of the image that a class must cover to be in the caption."""


@dataclass(frozen=True)
class CaptionedScene:
    """An image, its classes and its caption.

    Attributes:
        image: RGB, uint8 [size, size, 3].
        classes: Indices into `NOUNS`, uint8 [size, size].
        caption: Names the classes that cover at least `MIN_SHARE`, in random order; a share of captions is empty.
    """

    image: Array
    classes: Array
    caption: Caption

    @property
    def labels(self) -> Array:
        """Return region ids 0..K-1 in ascending order of their classes, uint16 [size, size]."""
        return np.unique(self.classes, return_inverse=True)[1].reshape(self.classes.shape).astype(np.uint16)


def generate_captioned(seed: int, size: int = 256) -> CaptionedScene:
    """Generate the captioned scene of a seed; the same seed and size always give the same bytes.

    Args:
        seed: Any integer ≥ 0.
        size: Side of the square image in pixels, ≥ 16.

    Raises:
        ValueError: `size` is too small.
    """
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    rng = np.random.default_rng([seed, 2])
    fields = NoiseFields.draw(rng, size)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    canvas, classes = _paint_grounds(rng, fields, axis)
    _paint_things(rng, fields, axis, canvas, classes)
    return CaptionedScene(apply_camera(rng, canvas, fields), classes, compose_caption(rng, visible_classes(classes)))


def visible_classes(classes: Array) -> list[int]:
    """Return the classes that cover at least `MIN_SHARE` of a map, ascending; values ≥ `len(NOUNS)` are ignored."""
    areas = np.bincount(classes.ravel(), minlength=len(NOUNS))[: len(NOUNS)]
    return np.flatnonzero(areas >= MIN_SHARE * classes.size).tolist()


def _paint_grounds(rng: np.random.Generator, fields: NoiseFields, axis: Array) -> tuple[Array, Array]:
    """Draw one or two grounds: opponent colours, float32 [H, W, 3], and classes, uint8 [H, W]."""
    y, x = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    drawn = rng.choice(len(STUFF), size=2 if rng.random() < 0.65 else 1, replace=False)
    kinds = sorted(drawn.tolist(), key=lambda kind: STUFF[kind] != "sky")  # the sky is the upper ground
    horizon = rng.uniform(0.25, 0.75) + rng.normal(0, 0.12) * (x - 0.5)
    horizon += rng.choice([0.0, 0.015, 0.05]) * fields.at(3, np.zeros_like(x), x * 0.7)
    below = y > horizon if len(kinds) > 1 else np.zeros(len(y), bool)
    canvas, classes = np.empty((len(y), 3), np.float32), np.empty(len(y), np.uint8)
    for kind, area in zip(kinds, (~below, below), strict=False):
        canvas[area], classes[area] = GROUNDS[STUFF[kind]](rng)(y[area], x[area], fields), kind
    side = len(axis)
    return canvas.reshape(side, side, 3), classes.reshape(side, side)


def _paint_things(rng: np.random.Generator, fields: NoiseFields, axis: Array, canvas: Array, classes: Array) -> None:
    """Paint one to five objects over the grounds, in place; lower objects are nearer and occlude higher ones."""
    count = int(rng.integers(1, 6))
    kinds, heights = rng.integers(len(OBJECTS), size=count), np.sort(rng.uniform(0.08, 0.92, count))
    shadows = rng.random() < 0.5
    for kind, cy in zip(kinds.tolist(), heights.tolist(), strict=True):
        pose = (cy, float(rng.uniform(0.05, 0.95)), float(rng.uniform(0.08, 0.25)), float(rng.normal(0, 0.35)))
        thing = NOUN_THINGS[OBJECTS[kind]](rng)
        shadow = (float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))) if shadows else None
        _paint_thing(thing, len(STUFF) + kind, pose, shadow, fields, axis, canvas, classes)


def _paint_thing(
    thing: NounThing,
    kind: int,
    pose: tuple[float, float, float, float],
    shadow: tuple[float, float] | None,
    fields: NoiseFields,
    axis: Array,
    canvas: Array,
    classes: Array,
) -> None:
    """Paint one object in place.

    `pose` is its cy, cx, radius and rotation in radians; `shadow` is the direction that the light comes from, (y, x).
    """
    cy, cx, radius, turn = pose
    rows, columns = (slice(*map(int, np.searchsorted(axis, [c - 2 * radius, c + 2 * radius]))) for c in (cy, cx))
    y, x = np.meshgrid(axis[rows], axis[columns], indexing="ij")
    dy, dx = (y - cy) / radius, (x - cx) / radius
    v, u = np.cos(turn) * dy - np.sin(turn) * dx, np.sin(turn) * dy + np.cos(turn) * dx
    inside = thing.inside(v, u)
    if shadow is not None:
        cast_shadow(canvas[rows, columns], inside, len(axis) * radius, shadow)
    canvas[rows, columns][inside] = thing.paint(v[inside], u[inside], fields)
    classes[rows, columns][inside] = kind
