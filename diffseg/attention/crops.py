"""Attention of overlapping windows at twice the resolution, put back into a grid twice as fine.

Axes: P = h·w positions of the model's own grid, Q = 4·P of the fine one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from diffseg.attention.aggregate import aggregate, upsample
from diffseg.attention.maps import Grid, SelfAttention
from diffseg.component_settings import Weights
from diffseg.devices import to_device

Place = tuple[int, int]
"""Row and column of a window's first position in the fine grid."""


def look_through_windows(
    whole: SelfAttention,
    detail: torch.Tensor,
    per_side: int,
    weights: Weights,
    look: Callable[[torch.Tensor], SelfAttention],
) -> SelfAttention:
    """One map on a grid twice as fine of the attention of a batch and of `per_side`² windows: see `with_windows`.

    whole: of the images at S pixels, overwritten. detail: float32 [B, 3, 2 S, 2 S], the same images. look: what gives
    the attention of float32 [B, 3, S, S] pixels. weights: as of `aggregate`.
    """
    grid, side = whole.finest, detail.shape[-1] // 2

    def of_window(place: Place) -> torch.Tensor:
        top, left = (first * side // tokens for first, tokens in zip(place, grid, strict=True))
        return aggregated(look(detail[..., top : top + side, left : left + side]))

    def aggregated(attention: SelfAttention) -> torch.Tensor:
        return aggregate(attention, weights, out=attention.maps[grid])[0]

    maps, fine = with_windows(aggregated(whole), grid, per_side, map(of_window, window_places(grid, per_side)))
    return SelfAttention(maps={fine: maps}, layers={fine: 1})


def window_places(grid: Grid, per_side: int) -> list[Place]:
    """Where per_side² windows of the size of `grid` lie in the fine grid: in equal steps, over all of it from 2 on."""
    rows, columns = (np.rint(np.linspace(0, tokens, per_side)).astype(int).tolist() for tokens in grid)
    return [(row, column) for row in rows for column in columns]


def with_windows(
    attention: torch.Tensor, grid: Grid, per_side: int, windows: Iterable[torch.Tensor]
) -> tuple[torch.Tensor, Grid]:
    """float32 [B, Q, Q], rows sum to 1, and the fine grid, of aggregated attention [B, P, P] and that of windows.

    windows: aggregated attention [B, P, P] of each of `window_places`, in their order, asked for one by one. What a row
    gives to a window as a whole is what it gives in the whole image; half of it is shared out as the window's own
    attention does. Where windows overlap their mean counts. The whole image's attention is bilinear in its keys and
    repeated in its queries, as in `aggregate`.
    """
    height, width = grid
    fine = (2 * height, 2 * width)
    keys = upsample(attention, grid, fine)
    keys /= keys.sum(dim=-1, keepdim=True)
    keys = keys.view(-1, *grid, *fine)
    result = keys.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    places = window_places(grid, per_side)
    covered = np.zeros(fine, dtype=np.float32)
    for row, column in places:
        covered[row : row + height, column : column + width] += 1
    weights = to_device(torch.from_numpy(0.5 / covered), attention.device)[..., None, None]
    for (row, column), own in zip(places, windows, strict=True):
        rows, columns = slice(row, row + height), slice(column, column + width)
        # the rows of the queries that lie in the window, which are repeated from the coarse grid
        before = keys[:, :, :, rows, columns]
        before = before.repeat_interleave(2, dim=1)[:, rows].repeat_interleave(2, dim=2)[:, :, columns]
        share = before.sum(dim=(-2, -1), keepdim=True)
        change = own.view(-1, *grid, *grid) * share - before
        result[:, rows, columns, rows, columns] += change * weights[rows, columns]
    return result.view(len(result), 4 * height * width, -1), fine
