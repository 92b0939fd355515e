"""The simpler of the training scenes: "dead leaves" in the widest sense (Lee, Mumford, Huang, IJCV 2001).

Shapes whose sizes follow a power law occlude each other and a few large backgrounds. Every region has different
colours, texture, gradient and 1/f noise, so that colour alone does not separate regions. The seed determines
everything.

Shapes are placed from front to back, and a pixel belongs to the first shape that covers it. Occlusion therefore costs
nothing, and a shape with too small a visible part is never placed, which makes the ids dense without renumbering.

Axes: H, W image. Coordinates are in units of the image's side, y downwards.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from diffseg.tiny.scenes.materials import OPPONENT
from diffseg.tiny.scenes.noise import EXPONENTS, fractal_noise

__all__ = ["generate_leaves"]

Array = np.ndarray
Window = tuple[slice, slice]
RegionNoise = Callable[[int], Array]
"""A function from the index of a noise field to its values on the pixels of a region, float32 [n]."""
Painter = Callable[[Array, Array, RegionNoise], Array]
"""A function from coordinates y and x, float32 [n], and noise to RGB colours, float32 [n, 3]."""

MIN_AREA = 1 / 1600
"""Smallest visible area of a region as a share of the image; a latent position covers 1/1024 of it at 256 px."""
CAMOUFLAGE = 0.25
"""Share of regions that repeat the mean colour of an earlier region."""


def generate_leaves(seed: int, size: int = 256) -> tuple[Array, Array]:
    """Generate the scene of a seed; the same seed and size always give the same bytes.

    Args:
        seed: Any integer ≥ 0.
        size: Side of the square image in pixels.

    Returns:
        The image, uint8 [size, size, 3] in RGB, and its labels, uint16 [size, size] with region ids 0..K-1.
    """
    rng = np.random.default_rng(seed)
    fields = [fractal_noise(rng, size, exponent) for exponent in EXPONENTS]
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    labels = np.full((size, size), -1, np.int32)
    canvas = np.zeros((size, size, 3), np.float32)
    colours: list[Array] = []

    def place(mask: Array, window: Window) -> None:
        visible = mask & (labels[window] < 0)
        if visible.sum() < MIN_AREA * size * size:
            return
        labels[window][visible] = len(colours)
        paint = _painter(rng, colours)
        rows, cols = window
        ys, xs = np.nonzero(visible)
        canvas[window][visible] = paint(axis[rows][ys], axis[cols][xs], lambda i: fields[i][window][visible])

    for shape in _shapes(rng):
        place(*shape(axis))
    for mask in _backgrounds(rng, axis, fields[3]):
        place(mask, (slice(None), slice(None)))
    labels = _fill_slivers(labels, canvas)
    return _apply_camera(rng, canvas, fields[3]), labels.astype(np.uint16)


# Shapes


def _shapes(rng: np.random.Generator) -> list[Callable[[Array], tuple[Array, Window]]]:
    """Draw shapes from front to back; small ones tend to lie in front, because large ones would hide them."""
    count = int(2 + rng.gamma(2.0, 5.0))
    low, high = 0.055, 0.42
    # p(r) ∝ r^-2 between the bounds, the statistics of sizes with which dead leaves resemble photographs.
    radii = 1 / (1 / high + rng.random(min(count, 40)) * (1 / low - 1 / high))
    depth = radii * np.exp(rng.normal(0, 0.5, len(radii)))
    return [_shape(rng, float(radius)) for radius in radii[np.argsort(depth)]]


def _shape(rng: np.random.Generator, radius: float) -> Callable[[Array], tuple[Array, Window]]:
    """Draw a shape; the result maps the pixel coordinates of an axis to a mask, bool [h, w], and its window."""
    centre = rng.uniform(-0.05, 1.05, 2)
    angle = rng.uniform(0, 2 * np.pi)
    kind = rng.choice(["disc", "polygon", "blob", "strip", "ring"], p=[0.24, 0.27, 0.27, 0.16, 0.06])
    aspect = float(np.exp(rng.uniform(-0.7, 0.7)))
    parameters = rng.random(24)
    reach = 1.5 if kind == "strip" else radius * max(aspect, 1 / aspect) * 1.8

    def rasterise(axis: Array) -> tuple[Array, Window]:
        bounds = [np.searchsorted(axis, [c - reach, c + reach]) for c in centre]
        window = (slice(*map(int, bounds[0])), slice(*map(int, bounds[1])))
        y, x = axis[window[0], None] - np.float32(centre[0]), axis[None, window[1]] - np.float32(centre[1])
        along, across = (1.0, 1.0) if kind == "strip" else (aspect, 1 / aspect)
        u = (np.cos(angle) * x + np.sin(angle) * y) / (radius * along)
        v = (np.cos(angle) * y - np.sin(angle) * x) / (radius * across)
        return _inside(str(kind), u.astype(np.float32), v.astype(np.float32), parameters), window

    return rasterise


def _inside(kind: str, u: Array, v: Array, parameters: Array) -> Array:
    """Return whether points lie inside a shape, bool [h, w]; u and v are in units of the shape's radius."""
    if kind == "disc":
        power = 1.5 + 2.5 * parameters[0] ** 2
        return np.abs(u) ** power + np.abs(v) ** power < 1
    if kind == "ring":
        return np.abs(np.hypot(u, v) - 0.8) < 0.15 + 0.15 * parameters[0]
    if kind == "strip":
        bend = 0.6 * parameters[0] / max(0.2, parameters[1])
        return (
            np.abs(v - bend * np.sin((0.2 + 0.8 * parameters[1]) * u + 6.3 * parameters[2]))
            < 0.25 + 0.35 * parameters[3]
        )
    if kind == "polygon":
        sides = 3 + int(parameters[0] * 5)
        turns = (np.arange(sides) + 0.7 * (parameters[1 : 1 + sides] - 0.5)) * (2 * np.pi / sides)
        planes = np.stack([np.cos(turns), np.sin(turns)]).astype(np.float32)
        distances = 0.6 + 0.5 * parameters[9 : 9 + sides]
        return np.all([planes[0, i] * u + planes[1, i] * v < distances[i] for i in range(sides)], axis=0)
    theta = np.arctan2(v, u)
    edge = 0.9 + sum(
        (0.45 / k) * (parameters[k] - 0.5) * np.cos(k * theta + 6.3 * parameters[8 + k]) for k in range(1, 7)
    )
    return np.hypot(u, v) < edge


def _backgrounds(rng: np.random.Generator, axis: Array, warp: Array) -> list[Array]:
    """Draw one to four large areas with warped borders that together cover the image, bool [H, W] each."""
    count = int(rng.choice([1, 2, 3, 4], p=[0.15, 0.35, 0.3, 0.2]))
    centres = rng.random((count, 2)).astype(np.float32)
    stretch = np.exp(rng.uniform(-0.8, 0.8))
    bend = np.float32(rng.choice([0.0, 0.02, 0.05]))
    y, x = axis[:, None] + bend * warp, axis[None, :] + bend * np.roll(warp, len(axis) // 2, 0)
    distance = [((y - cy) * stretch) ** 2 + (x - cx) ** 2 for cy, cx in centres]
    nearest = np.argmin(distance, axis=0)
    return [nearest == i for i in range(count)]


def _fill_slivers(labels: Array, canvas: Array) -> Array:
    """Fill pixels without a label from their nearest labelled neighbour; `canvas` is filled in place.

    Such pixels remain where only specks of a background are visible. The sweep runs in four directions. Some pixels are
    always labelled, because the backgrounds cover the image.
    """
    size = len(labels)
    for _ in range(4):
        empty = labels < 0
        if empty.any():
            source = np.maximum.accumulate(np.where(empty, 0, np.arange(size)), axis=1)
            rows = np.arange(size)[:, None]
            labels, canvas[:] = labels[rows, source], canvas[rows, source]
        labels, canvas[:] = np.rot90(labels), np.rot90(canvas).copy()
    return labels


# Surfaces


def _painter(rng: np.random.Generator, colours: list[Array]) -> Painter:
    """Draw the appearance of a region; its mean colour, in opponent axes, is appended to `colours`."""
    if colours and rng.random() < CAMOUFLAGE:
        base = colours[rng.integers(len(colours))]
        textured = True
    else:
        chroma, hue = min(0.35, rng.exponential(0.13)), rng.uniform(0, 2 * np.pi)
        base = np.array([np.sqrt(3) * rng.uniform(0.1, 0.92), chroma * np.cos(hue), chroma * np.sin(hue)])
        textured = rng.random() < 0.6
    colours.append(base)
    # The texture varies around the mean colour along one direction, mostly of lightness.
    swing = np.array([1.0, 0.35, 0.35]) * rng.normal(0, 1, 3)
    swing *= (rng.uniform(0.08, 0.32) if textured else 0.0) / np.linalg.norm(swing)
    grain = np.array([1.0, 0.25, 0.25]) * rng.normal(0, 0.06, 3)
    slope = rng.normal(0, 0.12, 2)
    kind = rng.choice(["stripes", "checks", "dots", "marble", "fractal"], p=[0.3, 0.15, 0.15, 0.25, 0.15])
    cycles, angle, phase = float(np.exp(rng.uniform(np.log(6), np.log(48)))), rng.uniform(0, np.pi), rng.uniform(0, 6.3)
    crisp, grain_field = rng.uniform(0.7, 4), int(rng.integers(3))

    def paint(y: Array, x: Array, noise: RegionNoise) -> Array:
        u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        wave = _texture(str(kind), 2 * np.pi * cycles * u + phase, 2 * np.pi * cycles * v, noise, crisp)
        light = slope[0] * (y - y.mean()) + slope[1] * (x - x.mean())
        opponent = base + wave[:, None] * swing + noise(grain_field)[:, None] * grain
        opponent[:, 0] += light * 1.7
        return opponent.astype(np.float32) @ OPPONENT

    return paint


def _texture(kind: str, u: Array, v: Array, noise: RegionNoise, crisp: float) -> Array:
    """Return a pattern with values in [-1, 1] and a mean of about zero, float [n]; u and v are phases in radians."""
    if kind == "stripes":
        return np.tanh(crisp * np.sin(u))
    if kind == "checks":
        return np.tanh(2 * crisp * np.sin(u) * np.sin(v))
    if kind == "dots":
        return np.tanh(crisp * (np.cos(u) + np.cos(v) - 0.7))
    if kind == "marble":
        return np.tanh(crisp * np.sin(u + 1.5 * noise(2)))
    return np.tanh(noise(0) * 1.2)


def _apply_camera(rng: np.random.Generator, canvas: Array, field: Array) -> Array:
    """Apply smooth illumination, slight blur and sensor noise to RGB colours; returns uint8 [H, W, 3]."""
    light = 1 + rng.uniform(0, 0.16) * np.tanh(np.roll(field, len(field) // 3, 1))
    image = canvas * light[..., None].astype(np.float32)
    # A binomial kernel of variance 2·side softens the sharp edges between regions as a lens does.
    side = rng.uniform(0.12, 0.25)
    for _ in range(int(rng.integers(1, 4))):
        for axis in (0, 1):
            first, last = image.take([0], axis), image.take([-1], axis)
            before = np.concatenate([first, image[:-1] if axis == 0 else image[:, :-1]], axis)
            after = np.concatenate([image[1:] if axis == 0 else image[:, 1:], last], axis)
            image = np.float32(1 - 2 * side) * image + np.float32(side) * (before + after)
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0, 0.03))
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
