"""Pairs of neighbouring positions on a token grid."""

from __future__ import annotations

from typing import Any

from diffseg.attention.maps import Grid


def half_disc(radius: int, grid: Grid) -> list[Grid]:
    """Return the offsets, in rows and columns, to the positions less than `radius` tokens away on a grid.

    Of two opposite offsets only one is listed: the one that points forward in reading order. A radius of 5, as in
    AffinityNet, gives 34 offsets.
    """
    down, right = (min(radius, tokens) for tokens in grid)
    around = ((y, x) for y in range(down) for x in range(1 - right, right))
    return [(y, x) for y, x in around if (y, x) > (0, 0) and y * y + x * x < radius * radius]


def neighbour_slices(grid: Grid, offset: Grid) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return two indices into an array [..., h, w]: one for the first and one for the second position of all pairs.

    Args:
        grid: Height and width of the array.
        offset: Rows and columns from the first position of a pair to the second; rows ≥ 0.
    """
    (height, width), (down, right) = grid, offset
    first = (..., slice(0, height - down), slice(max(0, -right), width - max(0, right)))
    second = (..., slice(down, height), slice(max(0, right), width - max(0, -right)))
    return first, second
