"""Procedural images with exact masks, made to look to a small network as photographs do.

A scene is a few wide areas (ground, walls, sky), seen at a slant or not, before which things stand: each made of parts
with materials of their own, shaded, casting shadows, hiding each other; several of a kind share one label, as kinds do
in the data sets that labels are made for. What is too thin or too small to be labelled (wires, litter, print) belongs
to what it lies on. A camera then adds its light, blur, noise and colours. One scene in six is of plain dead leaves
(diffseg.tiny.leaves). Everything follows from the seed.

Axes: H, W image. Coordinates are in units of the image's side, y downwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from diffseg.tiny.leaves import generate_leaves
from diffseg.tiny.materials import OPPONENT, Fields, Material, random_colour, random_material

__all__ = ["HELD_OUT_SEEDS", "TRAINING_SEEDS", "VALIDATION_SEEDS", "Scene", "generate_scene"]

# Disjoint, so that nothing is ever scored on what it was trained or tuned on.
TRAINING_SEEDS = range(10_000_000)
VALIDATION_SEEDS = range(10_000_000, 20_000_000)
HELD_OUT_SEEDS = range(20_000_000, 30_000_000)

Array = np.ndarray

LEAVES = 1 / 6  # share of scenes of plain dead leaves
LEAST_AREA = 1 / 800  # of the image: what shows less is not laid, or is hidden by what lies around it


@dataclass(frozen=True)
class Scene:
    """An image and its exact segmentation.

    Attributes:
        image: uint8 [size, size, 3], RGB.
        labels: uint16 [size, size], region ids 0..K-1, each on at least one pixel. A region may be in several pieces.
    """

    image: Array
    labels: Array


def generate_scene(seed: int, size: int = 256) -> Scene:
    """Return the scene of a seed; the same seed and size give the same bytes.

    Args:
        seed: any integer >= 0.
        size: side of the square image in pixels, >= 16.
    """
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    rng = np.random.default_rng([seed, 1])
    if rng.random() < LEAVES:
        return Scene(*generate_leaves(seed, size))
    fields = Fields.draw(rng, size)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    canvas, labels = _backdrop(rng, fields, axis)
    if rng.random() < 0.25:  # out of focus, before things that are not
        canvas = gaussian_filter(canvas, (*[rng.uniform(0.002, 0.015) * size] * 2, 0))
    _place_things(rng, fields, axis, canvas, labels)
    _litter(rng, axis, canvas)
    _, labels = np.unique(_without_specks(labels), return_inverse=True)
    return Scene(_photograph(rng, canvas, fields), labels.reshape(size, size).astype(np.uint16))


# What stands behind


def _backdrop(rng: np.random.Generator, fields: Fields, axis: Array) -> tuple[Array, Array]:
    """One to four wide areas: opponent colours float32 [H, W, 3] and labels int64 [H, W]."""
    y, x = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    count = int(rng.choice([1, 2, 3, 4], p=[0.22, 0.4, 0.25, 0.13]))
    wobble = rng.choice([0.0, 0.01, 0.04]) * fields.at(int(rng.integers(2, 4)), y, x)
    if rng.random() < 0.65:  # bands, as sky, wall and ground lie
        tilt = rng.normal(0, 0.15)
        cuts = np.sort(rng.uniform(0.1, 0.9, count - 1))
        labels = np.searchsorted(cuts, y + tilt * (x - 0.5) + wobble)
    else:  # areas around points
        centres, stretch = rng.random((count, 2)), np.exp(rng.uniform(-0.8, 0.8))
        labels = np.argmin([((y + wobble - cy) * stretch) ** 2 + (x - cx) ** 2 for cy, cx in centres], axis=0)
    canvas = np.empty((len(y), 3), np.float32)
    colours: list[Array] = []
    for index in range(count):
        # Neighbours of about the same colour are told apart by their structure alone.
        near = colours[-1] if colours and rng.random() < 0.15 else None
        here = labels == index
        canvas[here], colour = _paint_area(rng, fields, y[here], x[here], near)
        colours.append(colour)
    side = len(axis)
    return canvas.reshape(side, side, 3), labels.reshape(side, side).astype(np.int64)


def _paint_area(
    rng: np.random.Generator, fields: Fields, y: Array, x: Array, near: Array | None
) -> tuple[Array, Array]:
    """Opponent colours [n, 3] of an area's points, and a colour that stands for them: one material, patches, a heap."""
    material = random_material(rng, near=near)
    colour = material.paint(y, x, fields)
    kind = rng.choice(["one", "patches", "heap"], p=[0.55, 0.25, 0.2])
    if kind == "patches":  # grass and bare earth, a wall with posters
        other = random_material(rng, near=material.colours[0] if rng.random() < 0.4 else None)
        scale, origin, level = rng.uniform(0.3, 1.5), rng.random(2), rng.normal(0, 0.5)
        where = fields.at(int(rng.integers(2, 4)), y * scale + origin[0], x * scale + origin[1]) > level
        colour[where] = other.paint(y[where], x[where], fields)
    if kind == "heap":  # a market stall, shelves, a crowd, undergrowth: too many things to be told apart
        materials = [random_material(rng, calm=0.6) for _ in range(int(rng.integers(2, 6)))]
        radius = np.exp(rng.uniform(np.log(0.02), np.log(0.09)))
        for _ in range(int(min(150, rng.uniform(0.4, 1.5) / radius**2 / 3))):
            shape = _random_shape(rng, 0.0, 0.0, 1.0)
            pick = int(rng.integers(len(y)))
            near_by = (np.abs(y - y[pick]) < 3 * radius) & (np.abs(x - x[pick]) < 3 * radius)
            v, u = (y[near_by] - y[pick]) / radius, (x[near_by] - x[pick]) / radius
            hit = np.flatnonzero(near_by)[shape(v, u)]
            colour[hit] = materials[int(rng.integers(len(materials)))].paint(y[hit], x[hit], fields)
    return colour, material.colours[0]


# What stands before it


@dataclass(frozen=True)
class Part:
    """A piece of a thing: a superellipse, box, polygon or wedge in the thing's own coordinates, and its material."""

    inside: Callable[[Array, Array], Array]
    material: Material


@dataclass(frozen=True)
class Thing:
    """A kind of thing: parts from back to front, and how light falls on it."""

    parts: list[Part]
    roundness: float
    light: tuple[float, float]


def _random_thing(rng: np.random.Generator) -> Thing:
    """A body and up to five more parts at its rim or on it, in related materials or quite other ones."""
    body = random_material(rng, calm=0.55)
    parts = [Part(_random_shape(rng, 0.0, 0.0, 1.0), body)]
    for _ in range(int(rng.choice([0, 1, 2, 3, 4, 5], p=[0.3, 0.2, 0.18, 0.14, 0.1, 0.08]))):
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 1.1)
        shape = _random_shape(
            rng, reach * np.sin(angle), reach * np.cos(angle), float(np.exp(rng.uniform(np.log(0.15), np.log(0.8))))
        )
        related = rng.random() < 0.5
        material = random_material(rng, near=body.colours[0] if related else None, calm=0.6)
        parts.insert(len(parts) if rng.random() < 0.6 else 0, Part(shape, material))
    light = rng.uniform(0, 2 * np.pi)
    return Thing(parts, float(abs(rng.normal(0, 0.25))), (float(np.sin(light)), float(np.cos(light))))


def _random_shape(rng: np.random.Generator, cy: float, cx: float, radius: float) -> Callable[[Array, Array], Array]:
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


def _place_things(rng: np.random.Generator, fields: Fields, axis: Array, canvas: Array, labels: Array) -> None:
    """Paint kinds of things over the backdrop, from back to front, in place."""
    kinds = int(rng.choice([0, 1, 2, 3, 4, 5, 6], p=[0.03, 0.25, 0.27, 0.2, 0.13, 0.08, 0.04]))
    placements = []
    for kind in range(kinds):
        thing, radius = _random_thing(rng), float(np.exp(rng.uniform(np.log(0.05), np.log(0.38))))
        copies = 1 if rng.random() < 0.6 else int(rng.integers(2, 7))
        for _ in range(copies):
            size = radius * np.exp(rng.normal(0, 0.25)) / np.sqrt(copies) ** 0.5
            # What stands lower in the image stands nearer: it hides what stands higher.
            cy, cx = rng.uniform(0.05, 1.0), rng.uniform(-0.02, 1.02)
            placements.append((cy + rng.normal(0, 0.2), kind, thing, size, cy, cx, rng.normal(0, 0.3)))
    shadows = rng.random() < 0.5
    for _, kind, thing, size, cy, cx, turn in sorted(placements, key=lambda placement: placement[0]):
        mirror = rng.choice([-1.0, 1.0])
        _paint_thing(rng, fields, axis, canvas, labels, thing, 10 + kind, (size, cy, cx, turn, mirror), shadows)


def _paint_thing(
    rng: np.random.Generator,
    fields: Fields,
    axis: Array,
    canvas: Array,
    labels: Array,
    thing: Thing,
    label: int,
    pose: tuple[float, float, float, float, float],
    shadow: bool,
) -> None:
    radius, cy, cx, turn, mirror = pose
    rows, columns = (slice(*map(int, np.searchsorted(axis, [c - 2.8 * radius, c + 2.8 * radius]))) for c in (cy, cx))
    y, x = np.meshgrid(axis[rows], axis[columns], indexing="ij")
    if not y.size:
        return
    dy, dx = (y - cy) / radius, mirror * (x - cx) / radius
    v, u = np.cos(turn) * dy - np.sin(turn) * dx, np.sin(turn) * dy + np.cos(turn) * dx
    masks = [part.inside(v, u) for part in thing.parts]
    whole = np.any(masks, axis=0)
    if whole.sum() < LEAST_AREA * len(axis) ** 2:
        return
    if shadow:
        _cast_shadow(canvas[rows, columns], whole, len(axis) * radius, thing.light)
    for mask, part in zip(masks, thing.parts, strict=True):
        # The material goes with the thing: it is read in the thing's own coordinates.
        canvas[rows, columns][mask] = part.material.paint(0.5 + v[mask] * 0.4, 0.5 + u[mask] * 0.4, fields)
    depth = distance_transform_edt(whole)
    bulge = np.minimum(1, depth / (1 + 0.5 * depth.max()))
    side = np.clip(thing.light[0] * v + thing.light[1] * u, -1.5, 1.5)
    shade = thing.roundness * (0.6 * (bulge - 0.8) + 0.5 * side * (1 - bulge))
    canvas[rows, columns][whole, 0] *= np.clip(1 + shade[whole], 0.2, 1.8)
    labels[rows, columns][whole] = label


def _cast_shadow(canvas: Array, mask: Array, radius: float, light: tuple[float, float]) -> None:
    """Darken what lies beside a thing, away from the light; a shadow is no region."""
    shift = [round(-0.25 * radius * part) for part in light]
    dark = gaussian_filter(np.roll(mask.astype(np.float32), shift, (0, 1)), 0.06 * radius + 0.5)
    canvas *= (1 - 0.45 * dark)[..., None]


def _litter(rng: np.random.Generator, axis: Array, canvas: Array) -> None:
    """Wires, specks and print: under a token wide, and so of the region that they lie on."""
    y, x = axis[:, None], axis[None, :]
    for _ in range(int(rng.choice([0, 0, 0, 1, 2, 4]))):
        angle, offset, width = rng.uniform(0, np.pi), rng.uniform(0.1, 0.9), rng.uniform(0.002, 0.007)
        along = np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)
        across = np.cos(angle) * (y - 0.5) - np.sin(angle) * (x - 0.5)
        start, stop = np.sort(rng.uniform(-0.7, 0.7, 2))
        bow = rng.normal(0, 0.2) * along**2
        hit = (np.abs(across - (offset - 0.5) - bow) < width) & (along > start) & (along < stop)
        canvas[hit] = random_colour(rng)
    for _ in range(int(rng.choice([0, 0, 1, 8, 30]))):
        cy, cx, radius = rng.random(), rng.random(), rng.uniform(0.003, 0.012)
        rows, columns = (slice(*map(int, np.searchsorted(axis, [c - radius, c + radius]))) for c in (cy, cx))
        canvas[rows, columns] = random_colour(rng)


def _without_specks(labels: Array) -> Array:
    """Give regions of which too little shows to the region next to them."""
    ids, areas = np.unique(labels, return_counts=True)
    specks = np.isin(labels, ids[areas < LEAST_AREA * labels.size])
    if not specks.any():
        return labels
    nearest = distance_transform_edt(specks, return_distances=False, return_indices=True)
    return labels[tuple(nearest)]


# The camera


def _photograph(rng: np.random.Generator, canvas: Array, fields: Fields) -> Array:
    """Opponent colours to uint8 [H, W, 3]: light, lens, sensor and development."""
    size = len(canvas)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    y, x = axis[:, None], axis[None, :]
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3)
    light = 1 + np.float32(rng.uniform(0, 0.2)) * np.tanh(np.roll(fields.noise[3], size // 3, 1))
    light *= 1 + np.float32(strength) * (np.float32(np.sin(angle)) * y + np.float32(np.cos(angle)) * x)
    light *= 1 - np.float32(max(0.0, rng.normal(0, 0.15))) * (y**2 + x**2)
    if rng.random() < 0.35:  # shade of what is not in the image: leaves, a house
        edge = np.float32(rng.uniform(1, 12)) * (
            np.roll(fields.noise[2 + int(rng.integers(2))], size // 5, 0) - rng.normal(0.5, 0.5)
        )
        light *= 1 - np.float32(rng.uniform(0.15, 0.5)) * (0.5 + 0.5 * np.tanh(edge))
    canvas = canvas * [1, *[rng.uniform(0.5, 1.3)] * 2]  # saturation
    image = np.clip((canvas @ OPPONENT) * light[..., None], 0, 1.2).astype(np.float32)
    image *= np.exp(rng.normal(0, 0.06, 3)).astype(np.float32)  # white balance
    image = gaussian_filter(image, (*[rng.uniform(0.3, 1.1) * size / 256] * 2, 0))
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(abs(rng.normal(0, 0.02)))
    if rng.random() < 0.5:  # developed and made smaller: noise is coarser than pixels
        noise = gaussian_filter(noise, (0.8, 0.8, 0)) * 2
    contrast, centre = np.exp(rng.normal(0, 0.15)), rng.uniform(0.35, 0.6)
    image = (np.clip(image + noise, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.2))) - centre) * contrast + centre
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
