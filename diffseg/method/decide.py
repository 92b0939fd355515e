"""Turn proposals into a label map of any size with confidences, by non-maximum suppression (DiffSeg section 3.4).

Axes: K proposals, h and w tokens of the working grid, H and W pixels of the labelled region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import torch

from diffseg.attention.bilinear import bilinear_matrix
from diffseg.devices import to_device
from diffseg.method.naming import name_of
from diffseg.segmentation import IGNORE, Box, Segment, Segmentation

STRIPE_ELEMENTS = 2**20
"""Upsampled scores held at a time on a CPU: 4 MiB of float32, which stay in its cache."""

DEVICE_STRIPE_ELEMENTS = 2**27
"""Upsampled scores held at a time on any other device: 512 MiB of float32."""

MARGIN_UNIT = 2**24
"""Denominator of the fixed-point numbers in which margins and name scores are stored."""


class Stat(IntEnum):
    """Rows of `Decision.stats`, each int64 with one value per proposal. The last two are present only with names."""

    AREA = 0
    """Pixels that the proposal wins; 0 if it wins none and therefore has no label."""
    TOP = 1
    """First row of pixels."""
    BOTTOM = 2
    """Last row of pixels, inclusive."""
    LEFT = 3
    """First column of pixels."""
    RIGHT = 4
    """Last column of pixels, inclusive."""
    MARGIN = 5
    """Sum of the margins of its pixels, in units of 1 / MARGIN_UNIT."""
    NAME = 6
    """Index of the name, see `diffseg.method.naming`."""
    NAME_SCORE = 7
    """Score of the name, in units of 1 / MARGIN_UNIT."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """A label map and its statistics on the device, which may still be computing them.

    Attributes:
        labels: int16 [H, W]. Labels are 0, 1, … in the order of the proposals, without gaps.
        stats: int64 [6, K], or [8, K] with names; `Stat` names the rows. All values are integers, so that sums do not
            depend on the order in which a device adds.
        margins: uint8 [H, W], the margin of each pixel in units of 1 / 255; None unless it was requested.
    """

    labels: torch.Tensor
    stats: torch.Tensor
    margins: torch.Tensor | None = None

    def with_names(self, names: torch.Tensor, scores: torch.Tensor) -> Decision:
        """Return a copy whose statistics include names.

        Args:
            names: int64 [K], the index of each proposal's name.
            scores: float32 [K], the scores of the names, 0 to 1.
        """
        rows = torch.stack([names, (scores * MARGIN_UNIT).to(torch.int64)])
        return replace(self, stats=torch.cat([self.stats, rows]))


def decide_on_device(
    scores: torch.Tensor, size: tuple[int, int], content: Box | None = None, *, keep_margins: bool = False
) -> Decision:
    """Upsample scores bilinearly and give each pixel to the proposal with the highest score.

    Ties go to the first proposal. No value is read back from the device, so the host does not wait for it.

    Args:
        scores: float32 [K, h, w], ≥ 0 and finite.
        size: Height and width of the result in pixels.
        content: The part of the token grid that the pixels show, in tokens; default: all of it.
        keep_margins: Whether to return the margin of each pixel.
    """
    count, rows, columns = scores.shape
    height, width = size
    content = content or Box(top=0, left=0, bottom=rows, right=columns)
    device = scores.device
    down = bilinear_matrix(rows, height, start=content.top, stop=content.bottom)
    along = to_device(bilinear_matrix(columns, width, start=content.left, stop=content.right), device)
    wide = (scores.transpose(0, 1) @ along.T).reshape(rows, count * width)
    labels = torch.empty(size, dtype=torch.int16, device=device)
    margins = torch.empty(size, dtype=torch.uint8, device=device) if keep_margins else None
    tally = _Tally(size, count, device)
    step = max(1, (STRIPE_ELEMENTS if device.type == "cpu" else DEVICE_STRIPE_ELEMENTS) // (count * width))
    stripes = [slice(start, start + step) for start in range(0, height, step)]
    for stripe in stripes:
        used = down[stripe].any(dim=0).nonzero()
        tokens = slice(int(used[0]), int(used[-1]) + 1)
        upsampled = to_device(down[stripe, tokens], device) @ wide[tokens]
        best, margin = _best_and_margin(upsampled.view(-1, count, width))
        labels[stripe] = best
        tally.add(stripe, best, margin)
        if margins is not None:
            margins[stripe] = (margin * 255).round_()
    stats = tally.stats()
    label_of = ((stats[Stat.AREA] > 0).cumsum(dim=0) - 1).to(torch.int16)
    for stripe in stripes:
        labels[stripe] = label_of[labels[stripe].long()]
    return Decision(labels=labels, stats=stats, margins=margins)


def _best_and_margin(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best proposal of each pixel, int64 [H, W], and its margin, (best − second) / best.

    Args:
        scores: float32 [H, K, W]; they are overwritten.
    """
    count = scores.shape[1]
    first = scores.amax(dim=1)
    # This stands in for argmax, which is many times slower than amax on a CPU, as is comparing floats into booleans.
    rank = torch.arange(count, 0, -1, dtype=scores.dtype, device=scores.device)[:, None]
    is_first = (scores - first[:, None]).eq_(0)
    best = count - is_first.mul_(rank).amax(dim=1).to(torch.int64)
    second = scores.scatter_(1, best[:, None], 0).amax(dim=1)
    return best, (first - second) / first.clamp_min(torch.finfo(torch.float32).tiny)


class _Tally:
    """Running counts of the pixels of each proposal by row and by column, and sums of margins; all int64."""

    def __init__(self, size: tuple[int, int], count: int, device: torch.device) -> None:
        self.in_rows, self.in_columns, self.margins = (
            torch.zeros(lines, count, dtype=torch.int64, device=device) for lines in (*size, 1)
        )
        self.columns = torch.arange(size[1], device=device)

    def add(self, stripe: slice, best: torch.Tensor, margin: torch.Tensor) -> None:
        """Count the pixels of some rows: their proposals, int64 [n, W], and margins, float32 [n, W]."""
        rows = torch.arange(len(best), device=best.device)[:, None]
        _scatter(self.in_rows[stripe], rows, best)
        _scatter(self.in_columns, self.columns, best)
        _scatter(self.margins, torch.zeros_like(self.columns), best, (margin * MARGIN_UNIT).to(torch.int64))

    def stats(self) -> torch.Tensor:
        """Return the statistics, int64 [6, K], in the order of `Stat`."""
        areas = self.in_rows.sum(dim=0)
        return torch.stack([areas, *_extent(self.in_rows), *_extent(self.in_columns), self.margins[0]])


def _scatter(table: torch.Tensor, lines: torch.Tensor, best: torch.Tensor, amount: torch.Tensor | None = None) -> None:
    """Add 1, or `amount`, per pixel to the element of its line and its proposal in int64 [lines, K]."""
    elements = (lines * table.shape[1] + best).flatten()
    added = table.new_ones(1).expand_as(elements) if amount is None else amount.flatten()
    table.view(-1).scatter_add_(0, elements, added)


def _extent(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first and the last line in which each proposal has pixels, of int64 [lines, K]."""
    present = (table > 0).to(torch.uint8)
    return present.argmax(dim=0), len(table) - 1 - present.flip(0).argmax(dim=0)


def to_segmentation(
    labels: np.ndarray,
    stats: np.ndarray,
    size: tuple[int, int],
    region: Box | None = None,
    names: Sequence[str] = (),
) -> Segmentation:
    """Build the result for an image from a decision that was copied to the host.

    Args:
        labels: int16 [H, W] of the labelled region.
        stats: int64 [6, K] or [8, K], see `Stat`.
        size: Height and width of the image in pixels.
        region: The labelled region, in whole pixels of the image; default: all of it. Pixels outside get `IGNORE`.
        names: The names that row `Stat.NAME` refers to.
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
            name=name_of(name[0], names) if name else None,
            name_score=name[1] / MARGIN_UNIT if name else None,
        )
        for k, (area, y0, y1, x0, x1, margin, *name) in enumerate(stats[:, stats[Stat.AREA] > 0].T.tolist())
    )
    confidence = int(stats[Stat.MARGIN].sum()) / MARGIN_UNIT / labels.size
    return Segmentation(labels=whole, segments=segments, confidence=confidence)


def decide(
    scores: torch.Tensor, size: tuple[int, int], *, content: Box | None = None, region: Box | None = None
) -> Segmentation:
    """Upsample scores bilinearly, give each pixel to the best proposal, and label those that win pixels 0 to K−1.

    Args:
        scores: float32 [K, h, w], ≥ 0 and finite.
        size: Height and width of the image in pixels.
        content: The part of the token grid that shows the labelled region, in tokens; default: all of it.
        region: The labelled region, in whole pixels of the image; default: all of it. Pixels outside get `IGNORE`.
    """
    region_size = (int(region.bottom - region.top), int(region.right - region.left)) if region else size
    decision = decide_on_device(scores, region_size, content)
    return to_segmentation(decision.labels.cpu().numpy(), decision.stats.cpu().numpy(), size, region)
