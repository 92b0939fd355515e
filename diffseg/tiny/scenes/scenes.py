"""Procedural images with exact masks, made to look to a small network as photographs do.

A scene is a few wide areas (ground, walls, sky), seen at a slant or not, before which things stand: each made of parts
with materials of their own, shaded, casting shadows, hiding each other; several of a kind share one label, as kinds do
in the data sets that labels are made for. What is too thin or too small to be labelled (wires, litter, print) belongs
to what it lies on. A camera then adds its light, blur, noise and colours. One scene in six is of plain dead leaves
(diffseg.tiny.scenes.leaves). Everything follows from the seed.

Axes: H, W image. Coordinates are in units of the image's side, y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from diffseg.tiny.scenes.leaves import generate_leaves
from diffseg.tiny.scenes.materials import OPPONENT, Fields, random_colour, random_material
from diffseg.tiny.scenes.things import LEAST_AREA, place_things, random_shape

__all__ = ["HELD_OUT_SEEDS", "TRAINING_SEEDS", "VALIDATION_SEEDS", "Scene", "generate_scene", "photograph"]

# Disjoint, so that nothing is ever scored on what it was trained or tuned on.
TRAINING_SEEDS = range(10_000_000)
VALIDATION_SEEDS = range(10_000_000, 20_000_000)
HELD_OUT_SEEDS = range(20_000_000, 30_000_000)

Array = np.ndarray

LEAVES = 1 / 6  # share of scenes of plain dead leaves


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
    place_things(rng, fields, axis, canvas, labels)
    _litter(rng, axis, canvas)
    _, labels = np.unique(_without_specks(labels), return_inverse=True)
    return Scene(photograph(rng, canvas, fields), labels.reshape(size, size).astype(np.uint16))


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
            shape = random_shape(rng, 0.0, 0.0, 1.0)
            pick = int(rng.integers(len(y)))
            near_by = (np.abs(y - y[pick]) < 3 * radius) & (np.abs(x - x[pick]) < 3 * radius)
            v, u = (y[near_by] - y[pick]) / radius, (x[near_by] - x[pick]) / radius
            hit = np.flatnonzero(near_by)[shape(v, u)]
            colour[hit] = materials[int(rng.integers(len(materials)))].paint(y[hit], x[hit], fields)
    return colour, material.colours[0]


# What is over all of it


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


def photograph(rng: np.random.Generator, canvas: Array, fields: Fields) -> Array:
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
