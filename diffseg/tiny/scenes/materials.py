"""Materials: procedural surfaces of several colours.

Somebody who labels photographs gives a material one label although it contains edges: a brick wall, foliage, gravel,
a striped shirt, a sky with clouds. Colours are drawn along opponent axes, along which the colours of photographs are
spread.

Axes: n points, C colours. Coordinates are in units of the image's side, y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffseg.tiny.scenes.noise import NoiseFields
from diffseg.tiny.scenes.patterns import PATTERNS, Pattern

__all__ = ["OPPONENT", "Material", "random_colour", "random_material"]

Array = np.ndarray

OPPONENT = np.array([[1, 1, 1], [1, -1, 0], [-0.5, -0.5, 1]], np.float32)
"""Grey, red–green and yellow–blue axes in RGB, an orthonormal basis in which colours are drawn; float32 [3, 3]."""
OPPONENT /= np.linalg.norm(OPPONENT, axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class Material:
    """A material whose colour is a function of the place.

    Attributes:
        pattern: Decides which colours are where.
        colours: Opponent colours, float32 [C, 3].
        angle: Rotation of the pattern in the image, in radians.
        scale: Repeats of the pattern per side of the image.
        foreshortening: Strength of the perspective of a surface seen at a slant; 0 for a surface that faces the camera.
        grain: Standard deviation of fine noise in lightness; the noise in the other two axes is a quarter of it.
        grain_field: Index of the noise field that the grain is read from.
        slope: Change of lightness along y and along x over the image.
        drift: Amplitude of a slow change of colour over the image, opponent axes, float32 [3].
        drift_origin: Place at which the drift's noise field is read, (v, u).
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

    def paint(self, y: Array, x: Array, fields: NoiseFields) -> Array:
        """Return the colours of points.

        Args:
            y: Vertical coordinates, float32 [n].
            x: Horizontal coordinates, float32 [n].
            fields: Noise fields of the scene.

        Returns:
            Opponent colours, float32 [n, 3].
        """
        depth = 1 / (1 + self.foreshortening * (1 - np.clip(y, 0, 1)))
        u0, v0 = (x - 0.5) / depth, (y - 0.5) / depth
        u = np.float32(np.cos(self.angle)) * u0 + np.float32(np.sin(self.angle)) * v0
        v = np.float32(np.cos(self.angle)) * v0 - np.float32(np.sin(self.angle)) * u0
        colour = self._colours_of(self.pattern(v * self.scale, u * self.scale, fields))
        colour = colour + fields.at(self.grain_field, y, x)[:, None] * np.array(
            [self.grain, self.grain / 4, self.grain / 4], np.float32
        )
        drift = fields.at(3, y * np.float32(0.7) + self.drift_origin[0], x * np.float32(0.7) + self.drift_origin[1])
        colour += drift[:, None] * self.drift
        colour[:, 0] += 1.7 * (self.slope[0] * (y - 0.5) + self.slope[1] * (x - 0.5))
        return colour

    def _colours_of(self, amount: Array) -> Array:
        """Return the colours [n, 3] for the values of the pattern: positions between colours, or indices."""
        if amount.dtype.kind == "i":
            return self.colours[amount % len(self.colours)]
        position = np.clip(amount, 0, 1) * (len(self.colours) - 1)
        low = np.minimum(position.astype(np.int32), len(self.colours) - 2)
        share = (position - low)[:, None].astype(np.float32)
        return self.colours[low] * (1 - share) + self.colours[low + 1] * share


def random_colour(rng: np.random.Generator) -> Array:
    """Draw an opponent colour, float32 [3], distributed as in photographs: any lightness, mostly little chroma."""
    chroma, hue = min(0.36, rng.exponential(0.095)), rng.uniform(0, 2 * np.pi)
    lightness = np.sqrt(3) * rng.uniform(0.06, 0.95)
    return np.array([lightness, 0.6 * chroma * np.cos(hue), 1.2 * chroma * np.sin(hue)], dtype=np.float32)


def random_material(rng: np.random.Generator, *, near: Array | None = None, plain_share: float = 0.3) -> Material:
    """Draw a material.

    Args:
        rng: Source of all random numbers.
        near: Opponent colour that the first colour is drawn close to, for camouflage or for parts of one object; None
            draws any colour.
        plain_share: Probability of a plain material, whose pattern is hardly visible.
    """
    base = random_colour(rng) if near is None else near + _jitter(rng, 0.06)
    plain = rng.random() < plain_share
    count = int(rng.integers(2, 6))
    # Most materials vary in lightness around one hue; some, such as a market stall or a flower bed, have any colours.
    spread = rng.uniform(0.01, 0.05) if plain else rng.uniform(0.08, 0.4)
    any_colours = not plain and rng.random() < 0.2
    colours = [base] + [random_colour(rng) if any_colours else base + _jitter(rng, spread) for _ in range(count - 1)]
    kind = rng.choice(list(PATTERNS), p=[0.14, 0.09, 0.08, 0.13, 0.14, 0.16, 0.12, 0.14])
    slanted = rng.random() < 0.25
    return Material(
        pattern=PATTERNS[str(kind)](rng),
        colours=np.stack(colours).astype(np.float32),
        angle=0.0 if slanted else float(rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])),
        scale=float(np.exp(rng.uniform(np.log(2.5), np.log(30)))),
        foreshortening=float(rng.uniform(0.5, 4)) if slanted else 0.0,
        grain=float(abs(rng.normal(0, 0.06))),
        grain_field=int(rng.integers(3)),
        slope=(float(rng.normal(0, 0.18)), float(rng.normal(0, 0.1))),
        drift=_jitter(rng, 0.06) * np.float32(rng.exponential(1.0)),
        drift_origin=(float(rng.random()), float(rng.random())),
    )


def _jitter(rng: np.random.Generator, spread: float) -> Array:
    """Draw a small difference of opponent colours, float32 [3]."""
    return (rng.normal(0, spread, 3) * [1.7, 0.35, 0.6]).astype(np.float32)
