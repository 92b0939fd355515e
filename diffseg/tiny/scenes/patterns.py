"""Patterns of materials: stripes, tiles, clouds and others, as functions of the place.

Each function draws the parameters of a pattern and returns the pattern itself. Coordinates are in repeats of the
pattern.

Axes: n points.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree

from diffseg.tiny.scenes.noise import NoiseFields

__all__ = ["PATTERNS", "Pattern"]

Array = np.ndarray

Pattern = Callable[[Array, Array, NoiseFields], Array]
"""A function of coordinates v and u, float32 [n], and the scene's noise fields.

It returns either the position between a material's colours, float [n] in [0, 1], or the index of a colour, int [n] ≥ 0.
"""


def _stripes(rng: np.random.Generator) -> Pattern:
    crisp, bend, phase = rng.uniform(0.7, 5), rng.choice([0.0, rng.uniform(0, 1.5)]), rng.uniform(0, 6.3)

    def pattern(v: Array, u: Array, fields: NoiseFields) -> Array:
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
    """Draw a grid of cells in several colours, separated by lines of another colour: bricks, tiles, rows of windows."""
    tall, shift, line = np.exp(rng.uniform(-0.9, 0.9)), rng.choice([0.0, 0.5]), rng.uniform(0.03, 0.3)
    colours, seed = int(rng.integers(1, 5)), int(rng.integers(1 << 16))

    def pattern(v: Array, u: Array, fields: NoiseFields) -> Array:
        row = np.floor(v * np.float32(tall))
        along = u + shift * (row % 2)
        column = np.floor(along)
        inside = (v * np.float32(tall) - row > line) & (along - column > line)
        return np.where(inside, 1 + _hash_cells(row, column, seed) % colours, 0)

    return pattern


def _cells(rng: np.random.Generator) -> Pattern:
    """Draw irregular (Voronoi) cells in several colours: gravel, foliage, a crowd."""
    sides = np.array([1.0, np.exp(rng.uniform(-0.7, 0.7))])
    tree = cKDTree(rng.random((64, 2)) * sides, boxsize=sides)
    line = rng.choice([0.0, rng.uniform(0, 0.03)])

    def pattern(v: Array, u: Array, fields: NoiseFields) -> Array:
        # The modulo is taken twice, because the first may round up to the side itself.
        points = np.stack([v / 6, u / 6], -1).astype(np.float64) % sides % sides
        if not line:
            return tree.query(points)[1]
        distance, index = tree.query(points, k=2)
        return np.where(distance[:, 1] - distance[:, 0] < line, 0, index[:, 0])

    return pattern


def _clouds(rng: np.random.Generator) -> Pattern:
    """Draw a blend along a noise field: sky, marble, rust, bark; with hard steps foliage and camouflage."""
    field, crisp, level = int(rng.integers(1, 4)), np.exp(rng.uniform(-0.7, 1.6)), rng.normal(0, 0.5)
    stretch = np.exp(rng.uniform(-1, 1))
    origin = rng.random(2)

    def pattern(v: Array, u: Array, fields: NoiseFields) -> Array:
        noise = fields.at(field, v / 12 + origin[0], u / 12 * np.float32(stretch) + origin[1])
        return 0.5 + 0.5 * np.tanh(np.float32(crisp) * (noise - np.float32(level)))

    return pattern


def _strands(rng: np.random.Generator) -> Pattern:
    """Draw noise that is stretched along one direction: grass, fur, hair, wood, water."""
    stretch, field, crisp = np.exp(rng.uniform(1.2, 2.6)), int(rng.integers(1, 3)), rng.uniform(0.4, 1.5)
    origin = rng.random(2)

    def pattern(v: Array, u: Array, fields: NoiseFields) -> Array:
        along = v / 8 / np.float32(stretch) + 0.02 * fields.at(3, v / 30, u / 30) + origin[0]
        return 0.5 + 0.5 * np.tanh(np.float32(crisp) * fields.at(field, along, u / 8 + origin[1]))

    return pattern


def _mixture(rng: np.random.Generator) -> Pattern:
    """Draw patches of one pattern within another: wallpaper, meadows, printed cloth."""
    first, second = (
        PATTERNS[str(name)](rng) for name in rng.choice(["stripes", "dots", "cells", "clouds", "strands"], 2)
    )
    level, scale, origin = rng.normal(0, 0.4), np.exp(rng.uniform(-0.5, 1)), rng.random(2)

    def pattern(v: Array, u: Array, fields: NoiseFields) -> Array:
        in_first = fields.at(2, v / 15 * np.float32(scale) + origin[0], u / 15 * np.float32(scale) + origin[1]) > level
        mixed = np.empty(len(v), np.float32)
        for mask, part in ((in_first, first), (~in_first, second)):
            amount = part(v[mask], u[mask], fields)
            mixed[mask] = (amount % 5) / 4 if amount.dtype.kind == "i" else amount
        return mixed

    return pattern


def _hash_cells(row: Array, column: Array, seed: int) -> Array:
    """Return a pseudorandom number for each cell of a grid, int64 in [0, 65535]."""
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
"""The patterns by name; each value draws the parameters of a pattern."""
