"""Objects in a scene: they have parts and shading, cast shadows and occlude each other; a kind may occur several times.

Axes: H, W image, n points. Coordinates of the image are in units of its side, y downwards. Coordinates v and u of an
object are in units of its radius, v downwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from diffseg.tiny.scenes.materials import Material, random_material
from diffseg.tiny.scenes.noise import NoiseFields

__all__ = ["MIN_AREA", "cast_shadow", "place_things", "random_shape"]

Array = np.ndarray
Shape = Callable[[Array, Array], Array]
"""A function from coordinates v and u, float [n] or [h, w], to whether the points lie inside, bool of that shape."""

MIN_AREA = 1 / 800
"""Smallest visible area as a share of the image; smaller objects are not placed, and smaller regions are removed."""


@dataclass(frozen=True)
class ThingPart:
    """A part of an object: its shape, in the object's coordinates, and its material."""

    inside: Shape
    material: Material


@dataclass(frozen=True)
class Thing:
    """A kind of object.

    Attributes:
        parts: From back to front.
        roundness: Strength of the shading.
        light: Direction that the light comes from, (v, u), a unit vector.
    """

    parts: list[ThingPart]
    roundness: float
    light: tuple[float, float]


def _random_thing(rng: np.random.Generator) -> Thing:
    """Draw a body and up to five more parts on it or at its rim, in related or unrelated materials."""
    body = random_material(rng, plain_share=0.55)
    parts = [ThingPart(random_shape(rng, 0.0, 0.0, 1.0), body)]
    for _ in range(int(rng.choice([0, 1, 2, 3, 4, 5], p=[0.3, 0.2, 0.18, 0.14, 0.1, 0.08]))):
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 1.1)
        shape = random_shape(
            rng, reach * np.sin(angle), reach * np.cos(angle), float(np.exp(rng.uniform(np.log(0.15), np.log(0.8))))
        )
        related = rng.random() < 0.5
        material = random_material(rng, near=body.colours[0] if related else None, plain_share=0.6)
        parts.insert(len(parts) if rng.random() < 0.6 else 0, ThingPart(shape, material))
    light = rng.uniform(0, 2 * np.pi)
    return Thing(parts, float(abs(rng.normal(0, 0.25))), (float(np.sin(light)), float(np.cos(light))))


def random_shape(rng: np.random.Generator, cy: float, cx: float, radius: float) -> Shape:
    """Draw a shape of the given radius around (cy, cx)."""
    kind = rng.choice(["round", "box", "polygon", "blob", "limb", "ring"], p=[0.26, 0.17, 0.17, 0.23, 0.13, 0.04])
    angle, aspect = rng.uniform(0, np.pi), np.exp(rng.uniform(-0.7, 0.7))
    if kind == "limb":
        aspect = np.exp(rng.uniform(1.0, 2.2))
    power = 1.5 + 2.5 * rng.random() if kind == "round" else 8.0
    turns = np.sort(rng.random(int(rng.integers(3, 8)))) * 2 * np.pi
    planes, distances = np.stack([np.cos(turns), np.sin(turns)]), rng.uniform(0.5, 1.1, len(turns))
    waves, phases = rng.normal(0, 0.22, 6) / np.arange(1, 7), rng.uniform(0, 2 * np.pi, 6)
    bend, width = rng.normal(0, 0.25), rng.uniform(0.15, 0.35)

    def inside(v: Array, u: Array) -> Array:
        dv, du = v - cy, u - cx
        along = (np.cos(angle) * du + np.sin(angle) * dv) / (radius * np.sqrt(aspect))
        across = (np.cos(angle) * dv - np.sin(angle) * du) / (radius / np.sqrt(aspect))
        if kind == "polygon":
            near = (np.abs(along) < 1.4) & (np.abs(across) < 1.4)
            return near & np.all(
                [planes[0, i] * along + planes[1, i] * across < distances[i] for i in range(len(turns))], axis=0
            )
        if kind == "blob":
            theta = np.arctan2(across, along)
            edge = 0.9 + sum(w * np.cos(k * theta + p) for k, (w, p) in enumerate(zip(waves, phases, strict=True), 1))
            return np.hypot(along, across) < edge
        if kind == "ring":
            return np.abs(np.hypot(along, across) - 0.8) < width
        if kind == "limb":
            across = across - bend * (1 - along**2) * np.sqrt(aspect)
        return np.abs(along) ** power + np.abs(across) ** power < 1

    return inside


def place_things(rng: np.random.Generator, fields: NoiseFields, axis: Array, canvas: Array, labels: Array) -> None:
    """Paint up to six kinds of objects over the backdrop, from back to front.

    Args:
        rng: Source of all random numbers.
        fields: Noise fields of the scene.
        axis: Coordinates of the pixels along a side, float32 [H], H = W.
        canvas: Opponent colours, float32 [H, W, 3]; changed in place.
        labels: int64 [H, W]; changed in place. Objects of one kind share a label, 10 or greater.
    """
    kinds = int(rng.choice([0, 1, 2, 3, 4, 5, 6], p=[0.03, 0.25, 0.27, 0.2, 0.13, 0.08, 0.04]))
    placements = []
    for kind in range(kinds):
        thing, radius = _random_thing(rng), float(np.exp(rng.uniform(np.log(0.05), np.log(0.38))))
        copies = 1 if rng.random() < 0.6 else int(rng.integers(2, 7))
        for _ in range(copies):
            size = radius * np.exp(rng.normal(0, 0.25)) / np.sqrt(copies) ** 0.5
            # Objects that stand lower in the image are nearer and occlude those that stand higher.
            cy, cx = rng.uniform(0.05, 1.0), rng.uniform(-0.02, 1.02)
            placements.append((cy + rng.normal(0, 0.2), kind, thing, size, cy, cx, rng.normal(0, 0.3)))
    shadows = rng.random() < 0.5
    for _, kind, thing, size, cy, cx, turn in sorted(placements, key=lambda placement: placement[0]):
        mirror = rng.choice([-1.0, 1.0])
        _paint_thing(rng, fields, axis, canvas, labels, thing, 10 + kind, (size, cy, cx, turn, mirror), shadows)


def _paint_thing(
    rng: np.random.Generator,
    fields: NoiseFields,
    axis: Array,
    canvas: Array,
    labels: Array,
    thing: Thing,
    label: int,
    pose: tuple[float, float, float, float, float],
    shadow: bool,
) -> None:
    """Paint one object in place; `pose` is its radius, cy, cx, rotation in radians, and 1, or −1 if it is mirrored."""
    radius, cy, cx, turn, mirror = pose
    rows, columns = (slice(*map(int, np.searchsorted(axis, [c - 2.8 * radius, c + 2.8 * radius]))) for c in (cy, cx))
    y, x = np.meshgrid(axis[rows], axis[columns], indexing="ij")
    if not y.size:
        return
    dy, dx = (y - cy) / radius, mirror * (x - cx) / radius
    v, u = np.cos(turn) * dy - np.sin(turn) * dx, np.sin(turn) * dy + np.cos(turn) * dx
    masks = [part.inside(v, u) for part in thing.parts]
    whole = np.any(masks, axis=0)
    if whole.sum() < MIN_AREA * len(axis) ** 2:
        return
    if shadow:
        cast_shadow(canvas[rows, columns], whole, len(axis) * radius, thing.light)
    for mask, part in zip(masks, thing.parts, strict=True):
        # The material moves with the object, because it is read in the object's coordinates.
        canvas[rows, columns][mask] = part.material.paint(0.5 + v[mask] * 0.4, 0.5 + u[mask] * 0.4, fields)
    depth = distance_transform_edt(whole)
    bulge = np.minimum(1, depth / (1 + 0.5 * depth.max()))
    side = np.clip(thing.light[0] * v + thing.light[1] * u, -1.5, 1.5)
    shade = thing.roundness * (0.6 * (bulge - 0.8) + 0.5 * side * (1 - bulge))
    canvas[rows, columns][whole, 0] *= np.clip(1 + shade[whole], 0.2, 1.8)
    labels[rows, columns][whole] = label


def cast_shadow(canvas: Array, mask: Array, radius: float, light: tuple[float, float]) -> None:
    """Darken the canvas beside an object, on the side away from the light; labels do not change.

    Args:
        canvas: Opponent colours, float32 [h, w, 3]; changed in place.
        mask: Pixels of the object, bool [h, w].
        radius: Radius of the object in pixels.
        light: Direction that the light comes from, (y, x).
    """
    shift = [round(-0.25 * radius * part) for part in light]
    dark = gaussian_filter(np.roll(mask.astype(np.float32), shift, (0, 1)), 0.06 * radius + 0.5)
    canvas *= (1 - 0.45 * dark)[..., None]
