"""What surfaces look like: procedures that fill an area with a material of several colours.

A material is one thing to whoever labels a photograph, although it holds edges of its own: a wall of bricks, foliage,
gravel, a striped shirt, a sky with clouds. Colours are drawn in opponent axes, as photographs spread there.

Axes: H, W image. Coordinates are in units of the image's side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

__all__ = ["EXPONENTS", "OPPONENT", "Fields", "Material", "fractal", "random_colour", "random_material"]

Array = np.ndarray

# Grey, red–green and yellow–blue axes: an orthonormal frame in which colours are drawn.
OPPONENT = np.array([[1, 1, 1], [1, -1, 0], [-0.5, -0.5, 1]], np.float32)
OPPONENT /= np.linalg.norm(OPPONENT, axis=1, keepdims=True)

EXPONENTS = (0.7, 1.2, 1.8, 2.6)  # from nearly white to smooth; photographs as a whole lie near 1.2


def fractal(rng: np.random.Generator, size: int, exponent: float) -> Array:
    """1/f^exponent noise of zero mean and unit variance, periodic, float32 [size, size]."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    spectrum = rng.standard_normal((2, *frequency.shape), dtype=np.float32) * frequency.astype(np.float32) ** -exponent
    field = np.fft.irfft2(spectrum[0] + 1j * spectrum[1], (size, size)).astype(np.float32)
    return field / (field.std() + 1e-9)


@dataclass(frozen=True)
class Fields:
    """The noise fields that one scene's materials share, each read at places of its own."""

    noise: list[Array]

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int) -> Fields:
        return cls([fractal(rng, size, exponent) for exponent in EXPONENTS])

    def at(self, index: int, v: Array, u: Array) -> Array:
        """Field `index` at coordinates in units of its side, wrapped around: float32 of the shape of v and u."""
        field = self.noise[index]
        size = len(field)
        return field[np.floor(v * size).astype(np.int32) % size, np.floor(u * size).astype(np.int32) % size]


Pattern = Callable[[Array, Array, Fields], Array]
"""From coordinates v, u float32 [n] to float32 [n] in [0, 1], or to int [n], the index of a colour of its own."""


@dataclass(frozen=True, eq=False)
class Material:
    """A material with its own coordinates: `paint` gives the colours of any points of the image.

    Attributes:
        pattern: how much of which colour is where.
        colours: float32 [C, 3], opponent axes.
        angle, scale, foreshortening: of the pattern in the image: turned, in repeats a side, and seen at a slant.
        grain: strength of fine noise, and grain_field, which one.
        slope: change of lightness along y and x over the image.
        drift: slow change of colour from place to place, opponent axes, and where its field is read.
    """

    pattern: Pattern
    colours: Array
    angle: float
    scale: float
    foreshortening: float
    grain: float
    grain_field: int
    slope: tuple[float, float]
    drift: Array
    drift_origin: tuple[float, float]

    def paint(self, y: Array, x: Array, fields: Fields) -> Array:
        """Opponent colours float32 [n, 3] of the points y, x float32 [n]."""
        depth = 1 / (1 + self.foreshortening * (1 - np.clip(y, 0, 1)))
        u0, v0 = (x - 0.5) / depth, (y - 0.5) / depth
        u = np.float32(np.cos(self.angle)) * u0 + np.float32(np.sin(self.angle)) * v0
        v = np.float32(np.cos(self.angle)) * v0 - np.float32(np.sin(self.angle)) * u0
        amount = self.pattern(v * self.scale, u * self.scale, fields)
        if amount.dtype.kind == "i":
            colour = self.colours[amount % len(self.colours)]
        else:
            place = np.clip(amount, 0, 1) * (len(self.colours) - 1)
            low = np.minimum(place.astype(np.int32), len(self.colours) - 2)
            share = (place - low)[:, None].astype(np.float32)
            colour = self.colours[low] * (1 - share) + self.colours[low + 1] * share
        colour = colour + fields.at(self.grain_field, y, x)[:, None] * np.array(
            [self.grain, self.grain / 4, self.grain / 4], np.float32
        )
        drift = fields.at(3, y * np.float32(0.7) + self.drift_origin[0], x * np.float32(0.7) + self.drift_origin[1])
        colour += drift[:, None] * self.drift
        colour[:, 0] += 1.7 * (self.slope[0] * (y - 0.5) + self.slope[1] * (x - 0.5))
        return colour


def random_colour(rng: np.random.Generator) -> Array:
    """A colour as they are spread over photographs: any lightness, mostly little chroma; opponent axes, float32 [3]."""
    chroma, hue = min(0.36, rng.exponential(0.095)), rng.uniform(0, 2 * np.pi)
    lightness = np.sqrt(3) * rng.uniform(0.06, 0.95)
    return np.array([lightness, 0.6 * chroma * np.cos(hue), 1.2 * chroma * np.sin(hue)], dtype=np.float32)


def random_material(rng: np.random.Generator, *, near: Array | None = None, calm: float = 0.3) -> Material:
    """Draw a material.

    Args:
        rng: what everything follows from.
        near: a colour, opponent axes, to draw the first colour close to: camouflage, or parts of one thing.
        calm: share of materials without a pattern worth the name.
    """
    base = random_colour(rng) if near is None else near + _jitter(rng, 0.06)
    plain = rng.random() < calm
    count = int(rng.integers(2, 6))
    # Most materials vary in lightness around one hue; some, such as a market stall or a flower bed, hold anything.
    spread = rng.uniform(0.01, 0.05) if plain else rng.uniform(0.08, 0.4)
    wild = not plain and rng.random() < 0.2
    colours = [base] + [random_colour(rng) if wild else base + _jitter(rng, spread) for _ in range(count - 1)]
    kind = rng.choice(list(PATTERNS), p=[0.14, 0.09, 0.08, 0.13, 0.14, 0.16, 0.12, 0.14])
    ground = rng.random() < 0.25
    return Material(
        pattern=PATTERNS[str(kind)](rng),
        colours=np.stack(colours).astype(np.float32),
        angle=0.0 if ground else float(rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])),
        scale=float(np.exp(rng.uniform(np.log(2.5), np.log(30)))),
        foreshortening=float(rng.uniform(0.5, 4)) if ground else 0.0,
        grain=float(abs(rng.normal(0, 0.06))),
        grain_field=int(rng.integers(3)),
        slope=(float(rng.normal(0, 0.18)), float(rng.normal(0, 0.1))),
        drift=_jitter(rng, 0.06) * np.float32(rng.exponential(1.0)),
        drift_origin=(float(rng.random()), float(rng.random())),
    )


def _jitter(rng: np.random.Generator, spread: float) -> Array:
    return (rng.normal(0, spread, 3) * [1.7, 0.35, 0.6]).astype(np.float32)


# Patterns: each draws its parameters and returns a function of coordinates in repeats.


def _stripes(rng: np.random.Generator) -> Pattern:
    crisp, bend, phase = rng.uniform(0.7, 5), rng.choice([0.0, rng.uniform(0, 1.5)]), rng.uniform(0, 6.3)

    def pattern(v: Array, u: Array, fields: Fields) -> Array:
        wave = np.sin(2 * np.pi * u + phase + np.float32(bend) * fields.at(3, v / 20, u / 20))
        return 0.5 + 0.5 * np.tanh(np.float32(crisp) * wave)

    return pattern


def _checks(rng: np.random.Generator) -> Pattern:
    crisp = rng.uniform(1, 8)
    return lambda v, u, fields: 0.5 + 0.5 * np.tanh(np.float32(crisp) * np.sin(2 * np.pi * u) * np.sin(2 * np.pi * v))


def _dots(rng: np.random.Generator) -> Pattern:
    crisp, level = rng.uniform(1, 6), rng.uniform(0.2, 1.2)
    return lambda v, u, fields: (
        0.5 + 0.5 * np.tanh(np.float32(crisp) * (np.cos(2 * np.pi * u) + np.cos(2 * np.pi * v) - np.float32(level)))
    )


def _tiles(rng: np.random.Generator) -> Pattern:
    """Bricks, tiles, rows of windows: cells of a grid, each in a colour of its own, between lines of another."""
    tall, shift, line = np.exp(rng.uniform(-0.9, 0.9)), rng.choice([0.0, 0.5]), rng.uniform(0.03, 0.3)
    colours, seed = int(rng.integers(1, 5)), int(rng.integers(1 << 16))

    def pattern(v: Array, u: Array, fields: Fields) -> Array:
        row = np.floor(v * np.float32(tall))
        along = u + shift * (row % 2)
        column = np.floor(along)
        inside = (v * np.float32(tall) - row > line) & (along - column > line)
        return np.where(inside, 1 + _hash(row, column, seed) % colours, 0)

    return pattern


def _cells(rng: np.random.Generator) -> Pattern:
    """Gravel, foliage, a crowd: cells of any shape, each in a colour of its own."""
    sides = np.array([1.0, np.exp(rng.uniform(-0.7, 0.7))])
    tree = cKDTree(rng.random((64, 2)) * sides, boxsize=sides)
    line = rng.choice([0.0, rng.uniform(0, 0.03)])

    def pattern(v: Array, u: Array, fields: Fields) -> Array:
        places = np.stack([v / 6, u / 6], -1).astype(np.float64) % sides % sides  # twice: the first may round up to it
        if not line:
            return tree.query(places)[1]
        near, which = tree.query(places, k=2)
        return np.where(near[:, 1] - near[:, 0] < line, 0, which[:, 0])

    return pattern


def _clouds(rng: np.random.Generator) -> Pattern:
    """Blends along a noise field: sky, marble, rust, bark; hard steps make foliage and camouflage."""
    field, crisp, level = int(rng.integers(1, 4)), np.exp(rng.uniform(-0.7, 1.6)), rng.normal(0, 0.5)
    stretch = np.exp(rng.uniform(-1, 1))
    origin = rng.random(2)
    return lambda v, u, fields: (
        0.5
        + 0.5
        * np.tanh(
            np.float32(crisp)
            * (fields.at(field, v / 12 + origin[0], u / 12 * np.float32(stretch) + origin[1]) - np.float32(level))
        )
    )


def _strands(rng: np.random.Generator) -> Pattern:
    """Grass, fur, hair, wood, water: noise drawn out along one direction."""
    stretch, field, crisp = np.exp(rng.uniform(1.2, 2.6)), int(rng.integers(1, 3)), rng.uniform(0.4, 1.5)
    origin = rng.random(2)
    return lambda v, u, fields: (
        0.5
        + 0.5
        * np.tanh(
            np.float32(crisp)
            * fields.at(
                field,
                v / 8 / np.float32(stretch) + 0.02 * fields.at(3, v / 30, u / 30) + origin[0],
                u / 8 + origin[1],
            )
        )
    )


def _mixture(rng: np.random.Generator) -> Pattern:
    """Patches of one pattern within another: wallpaper, meadows, printed cloth."""
    first, second = (
        PATTERNS[str(name)](rng) for name in rng.choice(["stripes", "dots", "cells", "clouds", "strands"], 2)
    )
    level, scale, origin = rng.normal(0, 0.4), np.exp(rng.uniform(-0.5, 1)), rng.random(2)

    def pattern(v: Array, u: Array, fields: Fields) -> Array:
        where = fields.at(2, v / 15 * np.float32(scale) + origin[0], u / 15 * np.float32(scale) + origin[1]) > level
        mixed = np.empty(len(v), np.float32)
        for pick, part in ((where, first), (~where, second)):
            amount = part(v[pick], u[pick], fields)
            mixed[pick] = (amount % 5) / 4 if amount.dtype.kind == "i" else amount
        return mixed

    return pattern


def _hash(row: Array, column: Array, seed: int) -> Array:
    """A number that looks random for each cell of a grid, int64 ≥ 0."""
    mixed = row.astype(np.int64) * 73856093 ^ column.astype(np.int64) * 19349663 ^ seed * 83492791
    return (mixed ^ (mixed >> 13)) & 0xFFFF


PATTERNS: dict[str, Callable[[np.random.Generator], Pattern]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "tiles": _tiles,
    "cells": _cells,
    "clouds": _clouds,
    "strands": _strands,
    "mixture": _mixture,
}
