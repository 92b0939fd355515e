"""The ten kinds of objects of captioned scenes, each an outline and its colours.

Axes: n points. Coordinates v, u are in units of the object's radius, v downwards, with the object's centre as origin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from diffseg.tiny.scenes.grounds import Paint, blend, draw_colour, draw_noise
from diffseg.tiny.scenes.noise import NoiseFields

__all__ = ["NOUN_THINGS", "NounThing"]

Array = np.ndarray


@dataclass(frozen=True)
class NounThing:
    """One object.

    Attributes:
        inside: A function from coordinates v and u, float [h, w], to whether the points lie in the object, bool [h, w].
        paint: Gives the colours of points inside the object.
    """

    inside: Callable[[Array, Array], Array]
    paint: Paint


def _shaded(colour: Array, v: Array, u: Array, light: Array) -> Array:
    """Shade a round body, so that its colours [n, 3] are brighter towards the light."""
    side = np.clip(1 - 0.45 * (light[0] * v + light[1] * u) - 0.2 * (v**2 + u**2), 0.25, 1.5)
    return colour * side[:, None].astype(np.float32)


def _light_direction(rng: np.random.Generator) -> Array:
    """Draw the direction that the light comes from, (v, u), a unit vector."""
    turn = rng.uniform(0, 2 * np.pi)
    return np.array([np.sin(turn), np.cos(turn)])


def _red_ball(rng: np.random.Generator) -> NounThing:
    red, light = draw_colour(rng, 0.85, 0.12, 0.1), _light_direction(rng)
    band = draw_colour(rng, 0.95, 0.9, 0.85) if rng.random() < 0.3 else None

    def paint(v: Array, u: Array, fields: NoiseFields) -> Array:
        colour = np.repeat(red[None], len(v), 0)
        if band is not None:
            colour[np.abs(light[1] * v - light[0] * u) < 0.16] = band
        return _shaded(colour, v, u, light)

    return NounThing(lambda v, u: np.hypot(v, u) < 0.95, paint)


def _sun(rng: np.random.Generator) -> NounThing:
    rays, deep = int(rng.integers(9, 17)), rng.uniform(0.08, 0.2)
    core, rim = draw_colour(rng, 1.0, 0.95, 0.6, 0.03), draw_colour(rng, 1.0, 0.7, 0.15, 0.04)

    def inside(v: Array, u: Array) -> Array:
        return np.hypot(v, u) < 1 - deep + deep * np.cos(rays * np.arctan2(v, u))

    return NounThing(inside, lambda v, u, fields: blend(np.hypot(v, u) * 1.2, [core, core, rim]))


def _green_bush(rng: np.random.Generator) -> NounThing:
    lobes, phases = rng.integers(4, 10, 2), rng.uniform(0, 6.3, 2)
    colours = [draw_colour(rng, *rgb) for rgb in ((0.05, 0.16, 0.05), (0.16, 0.38, 0.1), (0.4, 0.58, 0.22))]
    leaves, light = draw_noise(rng, 2, rng.uniform(20, 36)), _light_direction(rng)

    def inside(v: Array, u: Array) -> Array:
        turn = np.arctan2(v, u)
        edge = (
            0.85 + 0.07 * np.abs(np.sin(lobes[0] * turn / 2 + phases[0])) + 0.06 * np.sin(lobes[1] * turn + phases[1])
        )
        return np.hypot(v * 1.15, u) < edge

    def paint(v: Array, u: Array, fields: NoiseFields) -> Array:
        return _shaded(blend(0.5 + 0.3 * leaves(v, u, fields), colours), v, u, light)

    return NounThing(inside, paint)


def _striped_flag(rng: np.random.Generator) -> NounThing:
    tall, waves, phase = rng.uniform(0.55, 0.75), rng.uniform(0.03, 0.12), rng.uniform(0, 6.3)
    hues = (
        (0.85, 0.1, 0.12),
        (0.95, 0.95, 0.95),
        (0.1, 0.2, 0.6),
        (0.95, 0.8, 0.1),
        (0.1, 0.45, 0.2),
        (0.08, 0.08, 0.1),
    )
    count, bands = int(rng.integers(2, 4)), int(rng.integers(3, 8))
    colours = np.stack([draw_colour(rng, *hues[i], 0.03) for i in rng.permutation(len(hues))[:count]])
    upright = rng.random() < 0.35

    def flat(v: Array, u: Array) -> Array:
        return v + waves * np.sin(3.5 * u + phase)

    def paint(v: Array, u: Array, fields: NoiseFields) -> Array:
        along = (u + 1) / 2 if upright else (flat(v, u) / tall + 1) / 2
        fold = 1 + 1.6 * waves * np.cos(3.5 * u + phase)
        return colours[np.floor(along * bands).astype(np.int64) % count] * fold[:, None].astype(np.float32)

    return NounThing(lambda v, u: (np.abs(u) < 0.98) & (np.abs(flat(v, u)) < tall), paint)


def _checker_board(rng: np.random.Generator) -> NounThing:
    cells = int(rng.integers(4, 8))
    hues = ((0.1, 0.1, 0.1), (0.5, 0.25, 0.12), (0.6, 0.1, 0.1), (0.1, 0.3, 0.2))
    dark, light = draw_colour(rng, *hues[rng.integers(4)]), draw_colour(rng, 0.92, 0.88, 0.78)

    def paint(v: Array, u: Array, fields: NoiseFields) -> Array:
        odd = (np.floor((v + 0.85) / 1.7 * cells) + np.floor((u + 0.85) / 1.7 * cells)) % 2 > 0
        return np.where(odd[:, None], dark, light).astype(np.float32)

    return NounThing(lambda v, u: np.maximum(np.abs(v), np.abs(u)) < 0.85, paint)


def _blue_ribbon(rng: np.random.Generator) -> NounThing:
    bend, phase, wide = rng.uniform(0.25, 0.5), rng.uniform(0, 6.3), rng.uniform(0.16, 0.26)
    blue, pace = draw_colour(rng, 0.12, 0.22, 0.75), rng.uniform(2.2, 4.0)

    def inside(v: Array, u: Array) -> Array:
        return (np.abs(v - bend * np.sin(pace * u + phase)) < wide) & (np.abs(u) < 1.3)

    def paint(v: Array, u: Array, fields: NoiseFields) -> Array:
        return blue * (1 + 0.4 * np.cos(pace * u + phase + 2 * v))[:, None].astype(np.float32)

    return NounThing(inside, paint)


def _purple_star(rng: np.random.Generator) -> NounThing:
    purple, edge = draw_colour(rng, 0.5, 0.16, 0.62), draw_colour(rng, 0.75, 0.5, 0.85)

    def depth(v: Array, u: Array) -> Array:
        """Return 1 at the centre and 0 on the outline of a five-pointed star."""
        turn = np.abs((np.arctan2(u, -v) * 5 / (2 * np.pi)) % 1 - 0.5) * 2  # 1 towards a point, 0 between two
        angle = (1 - turn) * np.pi / 5
        return 1 - np.hypot(v, u) * (np.cos(angle) + np.sin(angle) * 1.376)

    return NounThing(lambda v, u: depth(v, u) > 0, lambda v, u, fields: blend(depth(v, u) * 3, [edge, purple]))


def _wooden_crate(rng: np.random.Generator) -> NounThing:
    light, dark = draw_colour(rng, 0.72, 0.5, 0.28), draw_colour(rng, 0.42, 0.26, 0.12)
    planks, grain = int(rng.integers(3, 6)), draw_noise(rng, 1, 2, 40)
    slanted = rng.random() < 0.6

    def paint(v: Array, u: Array, fields: NoiseFields) -> Array:
        colour = blend(0.35 + 0.18 * grain(v, u, fields), [light, dark])
        border = np.maximum(np.abs(v), np.abs(u)) > 0.62
        joints = np.abs((v + 0.85) / 1.7 * planks % 1 - 0.5) > 0.44
        brace = slanted & (np.abs(v - u) < 0.17)
        colour[joints & ~border & ~brace] = dark * 0.6
        rim = np.abs(np.maximum(np.abs(v), np.abs(u)) - 0.62) < 0.03
        colour[rim | (slanted & (np.abs(np.abs(v - u) - 0.17) < 0.03) & ~border)] = dark * 0.7
        return colour

    return NounThing(lambda v, u: np.maximum(np.abs(v), np.abs(u)) < 0.85, paint)


def _leopard(rng: np.random.Generator) -> NounThing:
    coat, belly, spot = (
        draw_colour(rng, 0.82, 0.6, 0.3),
        draw_colour(rng, 0.92, 0.84, 0.66),
        draw_colour(rng, 0.14, 0.09, 0.05, 0.02),
    )
    spacing, shift, facing = rng.uniform(4.2, 6.0), rng.random(2), rng.choice([-1, 1])

    def inside(v: Array, u: Array) -> Array:
        u = u * facing
        body = (u / 0.85) ** 2 + ((v - 0.02) / 0.42) ** 2 < 1
        head = np.hypot(u - 0.78, v + 0.3) < 0.27
        legs = (np.minimum(np.abs(u - 0.5), np.abs(u + 0.55)) < 0.13) & (v > 0) & (v < 0.78)
        tail = (np.abs(v + 0.25 + 0.35 * np.sin(2.2 * (u + 0.7))) < 0.07) & (u < -0.6) & (u > -1.25)
        return body | head | legs | tail

    def paint(v: Array, u: Array, fields: NoiseFields) -> Array:
        colour = blend(0.5 + 0.9 * v, [coat, coat, belly])
        row = np.floor(v * spacing)
        dv, du = v * spacing - row - 0.5, (u * spacing + 0.5 * (row % 2) + shift[0]) % 1 - 0.5
        ring = np.hypot(dv, du) + 0.06 * fields.at(2, v / 4 + shift[1], u / 4)
        colour[(ring > 0.14) & (ring < 0.34)] = spot
        return colour

    return NounThing(inside, paint)


def _pink_flower(rng: np.random.Generator) -> NounThing:
    petals, phase = int(rng.integers(5, 9)), rng.uniform(0, 6.3)
    pink, pale, heart = (
        draw_colour(rng, 0.92, 0.4, 0.62),
        draw_colour(rng, 0.97, 0.72, 0.82),
        draw_colour(rng, 0.95, 0.8, 0.2),
    )

    def inside(v: Array, u: Array) -> Array:
        return np.hypot(v, u) < 0.5 + 0.45 * np.abs(np.cos(petals / 2 * np.arctan2(v, u) + phase))

    def paint(v: Array, u: Array, fields: NoiseFields) -> Array:
        radius = np.hypot(v, u)
        colour = blend(radius, [pale, pink, pale] if petals % 2 else [pink, pink, pale])
        colour[radius < 0.24] = heart
        return colour

    return NounThing(inside, paint)


NOUN_THINGS: Mapping[str, Callable[[np.random.Generator], NounThing]] = {
    "red ball": _red_ball,
    "sun": _sun,
    "green bush": _green_bush,
    "striped flag": _striped_flag,
    "checker board": _checker_board,
    "blue ribbon": _blue_ribbon,
    "purple star": _purple_star,
    "wooden crate": _wooden_crate,
    "leopard": _leopard,
    "pink flower": _pink_flower,
}
"""The objects by noun, in the order of `OBJECTS`; each value draws an object."""
