"""Proposals into a label map at any size, and how sure it is (non-maximum suppression, DiffSeg section 3.4).

Axes: K proposals, h and w tokens of the working grid, H and W pixels of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from diffseg.attention.bilinear import bilinear_matrix
from diffseg.devices import to_device
from diffseg.method.naming import name_of
from diffseg.segmentation import IGNORE, Box, Segment, Segmentation

STRIPE_ELEMENTS = 2**20
"""Upsampled scores held at a time on a CPU, 4 MiB of float32, which stay in its cache."""

DEVICE_STRIPE_ELEMENTS = 2**27

MARGIN_UNIT = 2**24
"""Margins are summed as whole numbers of this fraction."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """A label map as it comes off a device, not yet waited for.

    labels: int16 [h, w] of the labelled region, 0 … in the order of the proposals, all present. stats: int64 [6, K]
    of each proposal: area in pixels (0: not present), first and last row, first and last column, sum of its margins in
    units of 1 / MARGIN_UNIT. Whole numbers, so that sums depend on no order. Where proposals have names, two more rows:
    the index of the name, see `diffseg.method.naming`, and its score in the same units. margins: uint8 [h, w], the margin of
    each pixel in units of 1 / 255, where it was asked for.
    """

    labels: torch.Tensor
    stats: torch.Tensor
    margins: torch.Tensor | None = None

    def with_names(self, names: torch.Tensor, scores: torch.Tensor) -> Decision:
        """The same with names of the proposals, int64 [K], and their scores, float32 [K], 0 to 1."""
        rows = torch.stack([names, (scores * MARGIN_UNIT).to(torch.int64)])
        return replace(self, stats=torch.cat([self.stats, rows]))


def decide_on_device(
    scores: torch.Tensor, size: tuple[int, int], content: Box | None = None, *, keep_margins: bool = False
) -> Decision:
    """Upsample scores [K, h, w], ≥ 0 and finite, to `size` pixels; the highest wins, ties go to the first.

    content: the part of the token grid that the pixels show, in tokens (default: all of it). The device is not asked
    for any value.
    """
    count, rows, columns = scores.shape
    height, width = size
    content = content or Box(top=0, left=0, bottom=rows, right=columns)
    device = scores.device
    down = bilinear_matrix(rows, height, start=content.top, stop=content.bottom)
    along = to_device(bilinear_matrix(columns, width, start=content.left, stop=content.right), device)
    wide = (scores.transpose(0, 1) @ along.T).reshape(rows, count * width)
    labels = torch.empty(size, dtype=torch.int16, device=device)
    kept = torch.empty(size, dtype=torch.uint8, device=device) if keep_margins else None
    in_rows, in_columns, margins = (torch.zeros(n, count, dtype=torch.int64, device=device) for n in (height, width, 1))
    step = max(1, (STRIPE_ELEMENTS if device.type == "cpu" else DEVICE_STRIPE_ELEMENTS) // (count * width))
    every_column = torch.arange(width, device=device)
    for start in range(0, height, step):
        stripe = slice(start, start + step)
        used = down[stripe].any(dim=0).nonzero()
        tokens = slice(int(used[0]), int(used[-1]) + 1)
        fine = to_device(down[stripe, tokens], device) @ wide[tokens]
        best, margin = _best_and_margin(fine.view(-1, count, width))
        labels[stripe] = best
        _count(in_rows[stripe], torch.arange(len(best), device=device)[:, None], best)
        _count(in_columns, every_column, best)
        _count(margins, torch.zeros_like(every_column), best, (margin * MARGIN_UNIT).to(torch.int64))
        if kept is not None:
            kept[stripe] = (margin * 255).round_()
    areas = in_rows.sum(dim=0)
    number = ((areas > 0).cumsum(dim=0) - 1).to(torch.int16)
    for start in range(0, height, step):
        stripe = slice(start, start + step)
        labels[stripe] = number[labels[stripe].long()]
    stats = torch.stack([areas, *_extent(in_rows), *_extent(in_columns), margins[0]])
    return Decision(labels=labels, stats=stats, margins=kept)


def _best_and_margin(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of scores [h, K, w], which are overwritten: the best's index, int64 [h, w], and (best − second) / best."""
    count = scores.shape[1]
    first = scores.amax(dim=1)
    # In place of argmax: it is many times slower than amax on a CPU, as is comparing floats into booleans.
    rank = torch.arange(count, 0, -1, dtype=scores.dtype, device=scores.device)[:, None]
    is_first = (scores - first[:, None]).eq_(0)
    best = count - is_first.mul_(rank).amax(dim=1).to(torch.int64)
    second = scores.scatter_(1, best[:, None], 0).amax(dim=1)
    return best, (first - second) / first.clamp_min(torch.finfo(torch.float32).tiny)


def _count(table: torch.Tensor, lines: torch.Tensor, best: torch.Tensor, amount: torch.Tensor | None = None) -> None:
    """Add 1, or the amount, of every pixel to its line and proposal of int64 [lines, K]."""
    places = (lines * table.shape[1] + best).flatten()
    added = table.new_ones(1).expand_as(places) if amount is None else amount.flatten()
    table.view(-1).scatter_add_(0, places, added)


def _extent(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last line of int64 [lines, K] where each proposal is."""
    there = (table > 0).to(torch.uint8)
    return there.argmax(dim=0), len(table) - 1 - there.flip(0).argmax(dim=0)


def to_segmentation(
    labels: np.ndarray,
    stats: np.ndarray,
    size: tuple[int, int],
    region: Box | None = None,
    names: Sequence[str] = (),
) -> Segmentation:
    """The arrays of a Decision, back from the device, as a Segmentation of an image of `size` (H, W) pixels.

    region: the labelled pixels of the image (default: all), whole numbers; the others are `IGNORE`. names: that the
    stats tell the indices of.
    """
    top, left = (int(region.top), int(region.left)) if region else (0, 0)
    height, width = labels.shape
    whole = np.full(size, IGNORE, dtype=np.uint16)
    whole[top : top + height, left : left + width] = labels
    segments = tuple(
        Segment(
            id=k,
            area=area,
            bbox=(left + x0, top + y0, x1 - x0 + 1, y1 - y0 + 1),
            confidence=margin / MARGIN_UNIT / area,
            name=name_of(named[0], names) if named else None,
            name_score=named[1] / MARGIN_UNIT if named else None,
        )
        for k, (area, y0, y1, x0, x1, margin, *named) in enumerate(stats[:, stats[0] > 0].T.tolist())
    )
    return Segmentation(labels=whole, segments=segments, confidence=int(stats[5].sum()) / MARGIN_UNIT / labels.size)


def decide(
    scores: torch.Tensor, size: tuple[int, int], *, content: Box | None = None, region: Box | None = None
) -> Segmentation:
    """Upsample bilinearly, give each pixel to the highest proposal, renumber what is left, 0 to K−1.

    scores: float32 [K, h, w], ≥ 0 and finite. size: (H, W) of the image in pixels. content: where in the token grid the
    labelled region lies, in tokens (default: all of it). region: the labelled pixels of the image (default: all),
    whole numbers; the others are `IGNORE`.
    """
    shown = (int(region.bottom - region.top), int(region.right - region.left)) if region else size
    decision = decide_on_device(scores, shown, content)
    return to_segmentation(decision.labels.cpu().numpy(), decision.stats.cpu().numpy(), size, region)
