"""Self-attention of overlapping crops at twice the resolution, merged into a grid twice as fine.

Axes: B images in the batch, S pixels of the model's square, P = h·w positions of the model's own grid, Q = 4·P of the
fine grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from diffseg.attention.aggregate import aggregate, upsample
from diffseg.attention.maps import Grid, SelfAttention
from diffseg.component_settings import Weights
from diffseg.devices import to_device

Origin = tuple[int, int]
"""Row and column in the fine grid of a crop's first position."""


def attention_with_crops(
    whole: SelfAttention,
    detail: torch.Tensor,
    crops_per_side: int,
    weights: Weights,
    record: Callable[[torch.Tensor], SelfAttention],
) -> SelfAttention:
    """Record the attention of crops, and merge it with that of the whole images as `merge_crops` does.

    Args:
        whole: Attention of the whole images at S pixels; it is overwritten.
        detail: float32 [B, 3, 2·S, 2·S], the same images at twice the resolution.
        crops_per_side: The crops are the square of this number.
        weights: Shares of the resolutions, see `aggregate`.
        record: Returns the attention of float32 [B, 3, S, S] pixels.

    Returns:
        A single map per image, on the fine grid.
    """
    grid, side = whole.finest, detail.shape[-1] // 2

    def of_crop(origin: Origin) -> torch.Tensor:
        top, left = (first * side // tokens for first, tokens in zip(origin, grid, strict=True))
        return aggregated(record(detail[..., top : top + side, left : left + side]))

    def aggregated(attention: SelfAttention) -> torch.Tensor:
        return aggregate(attention, weights, out=attention.maps[grid])[0]

    crops = map(of_crop, crop_origins(grid, crops_per_side))
    maps, fine = merge_crops(aggregated(whole), grid, crops_per_side, crops)
    return SelfAttention(maps={fine: maps}, layers={fine: 1})


def crop_origins(grid: Grid, crops_per_side: int) -> list[Origin]:
    """Return where crops of the size of `grid` begin in the fine grid; two or more per side cover all of it."""
    rows, columns = (np.rint(np.linspace(0, tokens, crops_per_side)).astype(int).tolist() for tokens in grid)
    return [(row, column) for row in rows for column in columns]


def merge_crops(
    attention: torch.Tensor, grid: Grid, crops_per_side: int, crops: Iterable[torch.Tensor]
) -> tuple[torch.Tensor, Grid]:
    """Merge the attention of crops into that of whole images.

    The attention of the whole image is upsampled bilinearly in its keys and repeated in its queries, as in `aggregate`.
    The mass that a row of it gives to all positions of a crop is kept, but half of that mass is distributed within the
    crop as the crop's own attention is. Where crops overlap, their mean counts.

    Args:
        attention: Aggregated attention of whole images, float32 [B, P, P].
        grid: Height and width of its positions.
        crops_per_side: The crops are the square of this number.
        crops: Aggregated attention of each crop, float32 [B, P, P], in the order of `crop_origins`. It is read one crop
            at a time.

    Returns:
        float32 [B, Q, Q], whose rows sum to 1, and the fine grid.
    """
    height, width = grid
    fine = (2 * height, 2 * width)
    keys = upsample(attention, grid, fine)
    keys /= keys.sum(dim=-1, keepdim=True)
    keys = keys.view(-1, *grid, *fine)
    result = keys.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    origins = crop_origins(grid, crops_per_side)
    crops_at = np.zeros(fine, dtype=np.float32)
    for row, column in origins:
        crops_at[row : row + height, column : column + width] += 1
    weights = to_device(torch.from_numpy(0.5 / crops_at), attention.device)[..., None, None]
    for (row, column), crop in zip(origins, crops, strict=True):
        rows, columns = slice(row, row + height), slice(column, column + width)
        # The rows of the queries that lie in the crop, repeated from the coarse grid.
        before = keys[:, :, :, rows, columns]
        before = before.repeat_interleave(2, dim=1)[:, rows].repeat_interleave(2, dim=2)[:, :, columns]
        share = before.sum(dim=(-2, -1), keepdim=True)
        change = crop.view(-1, *grid, *grid) * share - before
        result[:, rows, columns, rows, columns] += change * weights[rows, columns]
    return result.view(len(result), 4 * height * width, -1), fine
