"""Periodic noise fields with the spectra of natural images.

Coordinates are in units of a field's side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["EXPONENTS", "NoiseFields", "fractal_noise"]

Array = np.ndarray

EXPONENTS = (0.7, 1.2, 1.8, 2.6)
"""Exponents of the spectra, from nearly white noise to smooth noise; whole photographs lie near 1.2."""


def fractal_noise(rng: np.random.Generator, size: int, exponent: float) -> Array:
    """Draw a periodic field of 1/f^exponent noise.

    Args:
        rng: Source of the random numbers.
        size: Side of the field in pixels.
        exponent: Exponent of the amplitude spectrum.

    Returns:
        float32 [size, size] of zero mean and unit variance.
    """
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    spectrum = rng.standard_normal((2, *frequency.shape), dtype=np.float32) * frequency.astype(np.float32) ** -exponent
    field = np.fft.irfft2(spectrum[0] + 1j * spectrum[1], (size, size)).astype(np.float32)
    return field / (field.std() + 1e-9)


@dataclass(frozen=True)
class NoiseFields:
    """The noise fields that all materials of a scene share; each material reads them at a different origin.

    Attributes:
        noise: One field per exponent of `EXPONENTS`, float32 [size, size] each.
    """

    noise: list[Array]

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int) -> NoiseFields:
        """Draw one field of `size` pixels a side for each of `EXPONENTS`."""
        return cls([fractal_noise(rng, size, exponent) for exponent in EXPONENTS])

    def at(self, index: int, v: Array, u: Array) -> Array:
        """Read a field at points, with wrapped coordinates.

        Args:
            index: Index of the field in `EXPONENTS`.
            v: Vertical coordinates of the points, in units of the field's side.
            u: Horizontal coordinates, of the same shape.

        Returns:
            float32 of the shape of `v` and `u`: the pixel of the field in which each point lies.
        """
        field = self.noise[index]
        size = len(field)
        return field[np.floor(v * size).astype(np.int32) % size, np.floor(u * size).astype(np.int32) % size]
