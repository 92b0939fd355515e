"""The eight grounds of captioned scenes, and the painting functions that they share with the objects.

The colours of nouns overlap on purpose (grass and bush, sun and sand, ribbon and water), so that structure and shape
are needed to separate them. Each ground is drawn from a random generator and returns a function that gives the opponent
colours of points, see `diffseg.tiny.scenes.materials`.

Axes: n points. Coordinates v, u are in units of the image's side, v downwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from diffseg.tiny.scenes.materials import OPPONENT
from diffseg.tiny.scenes.noise import NoiseFields

__all__ = ["GROUNDS", "Paint", "blend", "draw_colour", "draw_noise"]

Array = np.ndarray
Paint = Callable[[Array, Array, NoiseFields], Array]
"""A function from coordinates v and u, float32 [n], and noise fields to opponent colours, float32 [n, 3]."""
NoiseReader = Callable[[Array, Array, NoiseFields], Array]
"""A function from coordinates v and u, float32 [n], and noise fields to values of noise, float32 [n]."""


def draw_colour(rng: np.random.Generator, red: float, green: float, blue: float, spread: float = 0.06) -> Array:
    """Draw an opponent colour, float32 [3], near an RGB colour with components in [0, 1]."""
    rgb = np.array([red, green, blue]) * np.exp(rng.normal(0, 0.14)) + rng.normal(0, spread, 3)
    return (OPPONENT @ np.clip(rgb, 0.01, 1)).astype(np.float32)


def blend(share: Array, colours: Sequence[Array]) -> Array:
    """Interpolate between two or more colours.

    Args:
        share: Positions from the first colour, 0, to the last one, 1; values outside are clipped; float [n].
        colours: Opponent colours, float32 [3] each.

    Returns:
        float32 [n, 3].
    """
    position = np.clip(share, 0, 1) * (len(colours) - 1)
    low = np.minimum(position.astype(np.int32), len(colours) - 2)
    weight = (position - low)[:, None].astype(np.float32)
    stack = np.stack(colours)
    return stack[low] * (1 - weight) + stack[low + 1] * weight


def draw_noise(rng: np.random.Generator, field: int, across: float, down: float | None = None) -> NoiseReader:
    """Return a function that reads a noise field from a random origin.

    Args:
        rng: Source of the origin.
        field: Index of the noise field.
        across: About how many features lie in a unit of u.
        down: About how many features lie in a unit of v; None takes `across`.
    """
    origin, tall = rng.random(2), across if down is None else down
    return lambda v, u, fields: fields.at(field, v * tall / 12 + origin[0], u * across / 12 + origin[1])


def _sky(rng: np.random.Generator) -> Paint:
    high, low = draw_colour(rng, 0.3, 0.5, 0.85), draw_colour(rng, 0.65, 0.78, 0.92)
    cloud, cloudy = draw_colour(rng, 0.9, 0.9, 0.93, 0.03), rng.normal(0.4, 0.7)
    clouds = draw_noise(rng, 3, rng.uniform(6, 12), rng.uniform(14, 26))

    def paint(v: Array, u: Array, fields: NoiseFields) -> Array:
        cover = 0.5 + 0.5 * np.tanh(2.0 * (clouds(v, u, fields) - cloudy))
        return blend(v * 1.3, [high, low]) * (1 - cover[:, None]) + cloud * cover[:, None]

    return paint


def _grass(rng: np.random.Generator) -> Paint:
    colours = [draw_colour(rng, *rgb) for rgb in ((0.1, 0.25, 0.06), (0.3, 0.5, 0.14), (0.55, 0.66, 0.3))]
    blades, patches = draw_noise(rng, 1, rng.uniform(30, 60), 9), draw_noise(rng, 3, 6)
    return lambda v, u, fields: blend(0.5 + 0.28 * blades(v, u, fields) + 0.1 * patches(v, u, fields), colours)


def _water(rng: np.random.Generator) -> Paint:
    colours = [draw_colour(rng, *rgb) for rgb in ((0.06, 0.2, 0.35), (0.15, 0.42, 0.55), (0.7, 0.82, 0.88))]
    waves, swell = draw_noise(rng, 2, 5, rng.uniform(50, 90)), draw_noise(rng, 3, 3, 14)
    return lambda v, u, fields: blend(0.4 + 0.22 * waves(v, u, fields) + 0.12 * swell(v, u, fields), colours)


def _sand(rng: np.random.Generator) -> Paint:
    colours = [draw_colour(rng, *rgb) for rgb in ((0.62, 0.48, 0.28), (0.85, 0.74, 0.5), (0.95, 0.88, 0.68))]
    ripple, bend, grain = rng.uniform(9, 20), draw_noise(rng, 3, 8), draw_noise(rng, 0, 12)
    strength = rng.uniform(0.06, 0.22)
    return lambda v, u, fields: blend(
        0.5 + strength * np.sin(2 * np.pi * ripple * v + 2.2 * bend(v, u, fields)) + 0.1 * grain(v, u, fields), colours
    )


def _snow(rng: np.random.Generator) -> Paint:
    colours = [draw_colour(rng, *rgb, 0.03) for rgb in ((0.62, 0.7, 0.84), (0.9, 0.92, 0.96), (0.98, 0.98, 1.0))]
    drifts, glitter = draw_noise(rng, 3, rng.uniform(8, 16), rng.uniform(8, 20)), draw_noise(rng, 0, 12)
    return lambda v, u, fields: blend(
        0.6 + 0.2 * drifts(v, u, fields) + 0.3 * np.maximum(glitter(v, u, fields) - 1.3, 0), colours
    )


def _brick_wall(rng: np.random.Generator) -> Paint:
    tones = ((0.58, 0.26, 0.18), (0.68, 0.36, 0.24), (0.5, 0.3, 0.26), (0.72, 0.5, 0.36))
    bricks = np.stack([draw_colour(rng, *rgb) for rgb in tones])
    mortar = draw_colour(rng, *((0.75, 0.72, 0.66) if rng.random() < 0.7 else (0.3, 0.28, 0.27)))
    rows, wide, line, grain = rng.uniform(9, 18), rng.uniform(1.7, 2.6), rng.uniform(0.1, 0.2), draw_noise(rng, 0, 12)

    def paint(v: Array, u: Array, fields: NoiseFields) -> Array:
        row = np.floor(v * rows)
        along = u * rows / wide + 0.5 * (row % 2)
        column = np.floor(along)
        brick = (row * 73 + column * 31 + (row * column) % 7).astype(np.int64) % len(bricks)
        colour = bricks[brick] + 0.05 * grain(v, u, fields)[:, None] * np.array([1, 0.2, 0.2], np.float32)
        joint = (v * rows - row < line) | (along - column < line / wide)
        colour[joint] = mortar
        return colour

    return paint


def _road(rng: np.random.Generator) -> Paint:
    dark, light = draw_colour(rng, 0.22, 0.22, 0.24, 0.02), draw_colour(rng, 0.5, 0.49, 0.48, 0.02)
    mark = draw_colour(rng, *((0.95, 0.95, 0.92) if rng.random() < 0.6 else (0.92, 0.75, 0.2)))
    grain, stains = draw_noise(rng, 0, 12), draw_noise(rng, 3, 7)
    gap, slant, offset, wide = rng.uniform(0.25, 0.5), rng.normal(0, 0.9), rng.random(), rng.uniform(0.02, 0.04)

    def paint(v: Array, u: Array, fields: NoiseFields) -> Array:
        colour = blend(0.45 + 0.14 * grain(v, u, fields) + 0.12 * stains(v, u, fields), [dark, light])
        across = (u + slant * v + offset) / gap
        dashes = (across % 1 < wide / gap * np.hypot(1, slant)) & ((v - slant * u) * 5 % 1 < 0.6)
        colour[dashes] = mark
        return colour

    return paint


def _lava(rng: np.random.Generator) -> Paint:
    colours = [
        draw_colour(rng, *rgb, 0.03)
        for rgb in ((0.98, 0.8, 0.25), (0.9, 0.32, 0.06), (0.32, 0.09, 0.06), (0.1, 0.08, 0.08))
    ]
    cracks, crust = draw_noise(rng, 3, rng.uniform(18, 34)), draw_noise(rng, 2, 14)
    return lambda v, u, fields: blend(1.1 * np.sqrt(np.abs(cracks(v, u, fields))) + 0.1 * crust(v, u, fields), colours)


GROUNDS: Mapping[str, Callable[[np.random.Generator], Paint]] = {
    "sky": _sky,
    "grass": _grass,
    "water": _water,
    "sand": _sand,
    "snow": _snow,
    "brick wall": _brick_wall,
    "road": _road,
    "lava": _lava,
}
"""The grounds by noun, in the order of `STUFF`; each value draws a ground."""
