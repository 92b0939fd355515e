"""Procedural images with exact masks, made to resemble photographs to a small network.

A scene consists of a few wide areas (ground, walls, sky) with objects in front of them. Each object has parts of
different materials and shading, casts a shadow and occludes others. All objects of one kind share a label, as they do
in the data sets for which labels are made. Details that are too thin or too small for a label (wires, litter, print)
belong to the region that they lie on. A simulated camera then adds light, blur, noise and colour. One scene in six
consists of dead leaves instead (`diffseg.tiny.scenes.leaves`). The seed determines everything.

Axes: H, W image, n points. Coordinates are in units of the image's side, y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from diffseg.tiny.scenes.leaves import generate_leaves
from diffseg.tiny.scenes.materials import OPPONENT, random_colour, random_material
from diffseg.tiny.scenes.noise import NoiseFields
from diffseg.tiny.scenes.things import MIN_AREA, place_things, random_shape

__all__ = ["HELD_OUT_SEEDS", "TRAINING_SEEDS", "VALIDATION_SEEDS", "Scene", "apply_camera", "generate_scene"]

# The ranges are disjoint, so that no model is scored on scenes that it was trained or tuned on.
TRAINING_SEEDS = range(10_000_000)
VALIDATION_SEEDS = range(10_000_000, 20_000_000)
HELD_OUT_SEEDS = range(20_000_000, 30_000_000)

Array = np.ndarray

LEAVES_SHARE = 1 / 6
"""Share of scenes that consist of dead leaves."""


@dataclass(frozen=True)
class Scene:
    """An image and its exact segmentation.

    Attributes:
        image: RGB, uint8 [size, size, 3].
        labels: Region ids 0..K-1, uint16 [size, size]; each id occurs. A region may have several pieces.
    """

    image: Array
    labels: Array


def generate_scene(seed: int, size: int = 256) -> Scene:
    """Generate the scene of a seed; the same seed and size always give the same bytes.

    Args:
        seed: Any integer ≥ 0.
        size: Side of the square image in pixels, ≥ 16.

    Raises:
        ValueError: `size` is too small.
    """
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    rng = np.random.default_rng([seed, 1])
    if rng.random() < LEAVES_SHARE:
        return Scene(*generate_leaves(seed, size))
    fields = NoiseFields.draw(rng, size)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    canvas, labels = _backdrop(rng, fields, axis)
    if rng.random() < 0.25:  # a backdrop out of focus behind sharp objects
        canvas = gaussian_filter(canvas, (*[rng.uniform(0.002, 0.015) * size] * 2, 0))
    place_things(rng, fields, axis, canvas, labels)
    _paint_litter(rng, axis, canvas)
    _, labels = np.unique(_remove_specks(labels), return_inverse=True)
    return Scene(apply_camera(rng, canvas, fields), labels.reshape(size, size).astype(np.uint16))


# Backdrop


def _backdrop(rng: np.random.Generator, fields: NoiseFields, axis: Array) -> tuple[Array, Array]:
    """Draw one to four wide areas: opponent colours, float32 [H, W, 3], and labels, int64 [H, W]."""
    y, x = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    count = int(rng.choice([1, 2, 3, 4], p=[0.22, 0.4, 0.25, 0.13]))
    wobble = rng.choice([0.0, 0.01, 0.04]) * fields.at(int(rng.integers(2, 4)), y, x)
    if rng.random() < 0.65:  # horizontal bands, such as sky, wall and ground
        tilt = rng.normal(0, 0.15)
        cuts = np.sort(rng.uniform(0.1, 0.9, count - 1))
        labels = np.searchsorted(cuts, y + tilt * (x - 0.5) + wobble)
    else:  # the areas nearest to random points
        centres, stretch = rng.random((count, 2)), np.exp(rng.uniform(-0.8, 0.8))
        labels = np.argmin([((y + wobble - cy) * stretch) ** 2 + (x - cx) ** 2 for cy, cx in centres], axis=0)
    canvas = np.empty((len(y), 3), np.float32)
    colours: list[Array] = []
    for index in range(count):
        # Some neighbours have nearly the same colour, so that only their structure separates them.
        near = colours[-1] if colours and rng.random() < 0.15 else None
        area = labels == index
        canvas[area], colour = _paint_area(rng, fields, y[area], x[area], near)
        colours.append(colour)
    side = len(axis)
    return canvas.reshape(side, side, 3), labels.reshape(side, side).astype(np.int64)


def _paint_area(
    rng: np.random.Generator, fields: NoiseFields, y: Array, x: Array, near: Array | None
) -> tuple[Array, Array]:
    """Paint an area with one material, with patches of two, or as a heap of many objects.

    Returns the opponent colours of its points, float32 [n, 3], and the first colour of its main material, float32 [3].
    """
    material = random_material(rng, near=near)
    colours = material.paint(y, x, fields)
    kind = rng.choice(["one", "patches", "heap"], p=[0.55, 0.25, 0.2])
    if kind == "patches":  # such as grass and bare earth, or a wall with posters
        other = random_material(rng, near=material.colours[0] if rng.random() < 0.4 else None)
        scale, origin, level = rng.uniform(0.3, 1.5), rng.random(2), rng.normal(0, 0.5)
        patch = fields.at(int(rng.integers(2, 4)), y * scale + origin[0], x * scale + origin[1]) > level
        colours[patch] = other.paint(y[patch], x[patch], fields)
    if kind == "heap":
        _paint_heap(rng, fields, y, x, colours)
    return colours, material.colours[0]


def _paint_heap(rng: np.random.Generator, fields: NoiseFields, y: Array, x: Array, colours: Array) -> None:
    """Paint, in place, more objects than anybody would label: a market stall, shelves, a crowd, undergrowth."""
    materials = [random_material(rng, plain_share=0.6) for _ in range(int(rng.integers(2, 6)))]
    radius = np.exp(rng.uniform(np.log(0.02), np.log(0.09)))
    for _ in range(int(min(150, rng.uniform(0.4, 1.5) / radius**2 / 3))):
        shape = random_shape(rng, 0.0, 0.0, 1.0)
        centre = int(rng.integers(len(y)))
        nearby = (np.abs(y - y[centre]) < 3 * radius) & (np.abs(x - x[centre]) < 3 * radius)
        v, u = (y[nearby] - y[centre]) / radius, (x[nearby] - x[centre]) / radius
        inside = np.flatnonzero(nearby)[shape(v, u)]
        colours[inside] = materials[int(rng.integers(len(materials)))].paint(y[inside], x[inside], fields)


# Details without a label


def _paint_litter(rng: np.random.Generator, axis: Array, canvas: Array) -> None:
    """Paint wires, specks and print, in place; they are narrower than a token and belong to the region under them."""
    y, x = axis[:, None], axis[None, :]
    for _ in range(int(rng.choice([0, 0, 0, 1, 2, 4]))):
        angle, offset, width = rng.uniform(0, np.pi), rng.uniform(0.1, 0.9), rng.uniform(0.002, 0.007)
        along = np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)
        across = np.cos(angle) * (y - 0.5) - np.sin(angle) * (x - 0.5)
        start, stop = np.sort(rng.uniform(-0.7, 0.7, 2))
        bow = rng.normal(0, 0.2) * along**2
        wire = (np.abs(across - (offset - 0.5) - bow) < width) & (along > start) & (along < stop)
        canvas[wire] = random_colour(rng)
    for _ in range(int(rng.choice([0, 0, 1, 8, 30]))):
        cy, cx, radius = rng.random(), rng.random(), rng.uniform(0.003, 0.012)
        rows, columns = (slice(*map(int, np.searchsorted(axis, [c - radius, c + radius]))) for c in (cy, cx))
        canvas[rows, columns] = random_colour(rng)


def _remove_specks(labels: Array) -> Array:
    """Replace regions that are smaller than `MIN_AREA` by their nearest neighbours; returns labels [H, W]."""
    ids, areas = np.unique(labels, return_counts=True)
    specks = np.isin(labels, ids[areas < MIN_AREA * labels.size])
    if not specks.any():
        return labels
    nearest = distance_transform_edt(specks, return_distances=False, return_indices=True)
    return labels[tuple(nearest)]


# Camera


def apply_camera(rng: np.random.Generator, canvas: Array, fields: NoiseFields) -> Array:
    """Simulate light, lens, sensor and development.

    Args:
        rng: Source of all random numbers.
        canvas: Opponent colours, float32 [H, W, 3], H = W.
        fields: Noise fields of the scene.

    Returns:
        RGB image, uint8 [H, W, 3].
    """
    size = len(canvas)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    y, x = axis[:, None], axis[None, :]
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3)
    light = 1 + np.float32(rng.uniform(0, 0.2)) * np.tanh(np.roll(fields.noise[3], size // 3, 1))
    light *= 1 + np.float32(strength) * (np.float32(np.sin(angle)) * y + np.float32(np.cos(angle)) * x)
    light *= 1 - np.float32(max(0.0, rng.normal(0, 0.15))) * (y**2 + x**2)
    if rng.random() < 0.35:  # the shade of objects outside the image, such as leaves or a house
        edge = np.float32(rng.uniform(1, 12)) * (
            np.roll(fields.noise[2 + int(rng.integers(2))], size // 5, 0) - rng.normal(0.5, 0.5)
        )
        light *= 1 - np.float32(rng.uniform(0.15, 0.5)) * (0.5 + 0.5 * np.tanh(edge))
    canvas = canvas * [1, *[rng.uniform(0.5, 1.3)] * 2]  # saturation
    image = np.clip((canvas @ OPPONENT) * light[..., None], 0, 1.2).astype(np.float32)
    image *= np.exp(rng.normal(0, 0.06, 3)).astype(np.float32)  # white balance
    image = gaussian_filter(image, (*[rng.uniform(0.3, 1.1) * size / 256] * 2, 0))
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(abs(rng.normal(0, 0.02)))
    if rng.random() < 0.5:  # development and reduction make noise coarser than pixels
        noise = gaussian_filter(noise, (0.8, 0.8, 0)) * 2
    contrast, centre = np.exp(rng.normal(0, 0.15)), rng.uniform(0.35, 0.6)
    image = (np.clip(image + noise, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.2))) - centre) * contrast + centre
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
