"""Pairs of neighbouring positions on a token grid."""

from __future__ import annotations

from typing import Any

from diffseg.attention.maps import Grid


def half_disc(radius: int, grid: Grid) -> list[Grid]:
    """Rows and columns to the positions less than `radius` away on a grid, of two opposite ones the one read later.

    34 for a radius of 5, as in AffinityNet.
    """
    down, right = (min(radius, tokens) for tokens in grid)
    around = ((y, x) for y in range(down) for x in range(1 - right, right))
    return [(y, x) for y, x in around if (y, x) > (0, 0) and y * y + x * x < radius * radius]


def windows(grid: Grid, offset: Grid) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Indices into [..., h, w]: the positions that have one at the offset, rows ≥ 0, on the grid; and those there."""
    (height, width), (down, right) = grid, offset
    own = (..., slice(0, height - down), slice(max(0, -right), width - max(0, right)))
    other = (..., slice(down, height), slice(max(0, right), width - max(0, -right)))
    return own, other
