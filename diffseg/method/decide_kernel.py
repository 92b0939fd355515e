"""Deciding (`diffseg.method.decide`) as two Triton kernels for a batch of images of any sizes, for GPUs.

A program upsamples all scores of some pixels and keeps only the best two of each pixel, so that upsampled scores are
never held in memory. Importing this module needs Triton.

Axes: B images, K proposals, h and w tokens of the working grid, H and W pixels of a labelled region.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl

from diffseg.devices import to_device
from diffseg.method.decision import MARGIN_UNIT, Decision, Stat
from diffseg.segmentation import Box

PIXELS = 1024
"""Pixels that a program decides."""

STATS = 6
"""Rows of the statistics without names."""

NOWHERE = 2**30
"""First row and first column of a proposal without pixels."""


def decide_in_kernels(
    scores: torch.Tensor, sizes: Sequence[tuple[int, int]], contents: Sequence[Box], *, keep_margins: bool
) -> list[Decision]:
    """Do the same as `diffseg.method.decide.decide_batch` for images of different sizes.

    Args:
        scores: float32 [B or more, K, h, w], ≥ 0 and finite.
        sizes: Height and width of each result in pixels, B of them.
        contents: The part of the token grid that the pixels of each image show, in tokens.
        keep_margins: Whether to return the margin of each pixel.
    """
    images, (count, rows, columns), device = len(sizes), scores.shape[1:], scores.device
    areas = [height * width for height, width in sizes]
    starts = [0, *accumulate(areas)]
    layout = torch.tensor([(*size, start) for size, start in zip(sizes, starts, strict=False)])
    steps = [
        (box.top, (box.bottom - box.top) / height, box.left, (box.right - box.left) / width)
        for box, (height, width) in zip(contents, sizes, strict=True)
    ]
    layout, boxes = to_device(layout, device), to_device(torch.tensor(steps), device)
    labels = torch.empty(starts[-1], dtype=torch.int16, device=device)
    margins = torch.empty(starts[-1] if keep_margins else 0, dtype=torch.uint8, device=device)
    stats = torch.zeros(images, STATS, count, dtype=torch.int64, device=device)
    stats[:, Stat.TOP : Stat.LEFT + 1 : 2].fill_(NOWHERE)  # the rows TOP and LEFT
    grid = (triton.cdiv(max(areas), PIXELS), images)
    with torch.cuda.device_of(scores):  # Triton launches on the current device
        _choose[grid](
            scores.contiguous(),
            layout,
            boxes,
            labels,
            margins,
            stats,
            count,
            rows,
            columns,
            float(MARGIN_UNIT),
            keep_margins=keep_margins,
            pixels=PIXELS,
        )
        label_of = ((stats[:, Stat.AREA] > 0).cumsum(dim=1) - 1).to(torch.int16)
        _relabel[grid](labels, label_of, layout, count, pixels=PIXELS)
    parts = zip(
        labels.split(areas), margins.split(areas) if keep_margins else [None] * images, stats, sizes, strict=True
    )
    return [
        Decision(labels=label.view(size), stats=stat, margins=None if margin is None else margin.view(size))
        for label, margin, stat, size in parts
    ]


@triton.jit
def _choose(
    scores,
    layout,
    boxes,
    labels,
    margins,
    stats,
    count,
    rows,
    columns,
    margin_unit,
    keep_margins: tl.constexpr,
    pixels: tl.constexpr,
):
    """Choose the best proposal of some pixels of an image, and add them to the statistics of the proposals.

    Args:
        scores: float32 [B, K, h, w].
        layout: int64 [B, 3], the height and width of each image and the index of its first pixel.
        boxes: float32 [B, 4], in tokens: the top of the region, the height of a pixel, the left side of the region and
            the width of a pixel.
        labels: int16 [pixels of all images], to which the proposals are written.
        margins: uint8 [pixels of all images], to which the margins are written if they are kept.
        stats: int64 [B, 6, K] in the order of `Stat`, to which the pixels are added.
        count: K.
        rows: h.
        columns: w.
        margin_unit: Denominator of the margins in the statistics.
        keep_margins: Whether to store the margins.
        pixels: Pixels that a program decides.
    """
    image = tl.program_id(1).to(tl.int64)
    height, width = tl.load(layout + 3 * image).to(tl.int32), tl.load(layout + 3 * image + 1).to(tl.int32)
    pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
    inside = pixel < height * width
    y, x = pixel // width, pixel % width
    # Where the centre of a pixel lies between the centres of tokens, see `bilinear_matrix`.
    down = tl.load(boxes + 4 * image) + (y + 0.5) * tl.load(boxes + 4 * image + 1) - 0.5
    right = tl.load(boxes + 4 * image + 2) + (x + 0.5) * tl.load(boxes + 4 * image + 3) - 0.5
    down, right = tl.minimum(tl.maximum(down, 0.0), rows - 1.0), tl.minimum(tl.maximum(right, 0.0), columns - 1.0)
    upper, left = down.to(tl.int32), right.to(tl.int32)
    lower, after = tl.minimum(upper + 1, rows - 1), tl.minimum(left + 1, columns - 1)
    down, right = down - upper, right - left
    best = tl.full((pixels,), 0, tl.int32)
    first, second = tl.full((pixels,), -1.0, tl.float32), tl.full((pixels,), 0.0, tl.float32)
    for proposal in range(count):
        plane = scores + (image * count + proposal) * (rows * columns)
        above = tl.load(plane + upper * columns + left) * (1 - right) + tl.load(plane + upper * columns + after) * right
        below = tl.load(plane + lower * columns + left) * (1 - right) + tl.load(plane + lower * columns + after) * right
        score = above * (1 - down) + below * down
        is_better = score > first  # so ties go to the first proposal
        second = tl.where(is_better, tl.maximum(first, 0.0), tl.maximum(second, score))
        best, first = tl.where(is_better, proposal, best), tl.where(is_better, score, first)
    margin = (first - second) / tl.maximum(first, 1.1754943508222875e-38)  # the smallest normal number
    target = tl.load(layout + 3 * image + 2) + pixel
    tl.store(labels + target, best.to(tl.int16), mask=inside)
    if keep_margins:
        tl.store(margins + target, (margin * 255 + 0.5).to(tl.int32).to(tl.uint8), mask=inside)
    units = (margin * margin_unit).to(tl.int64)
    _add_to_stats(stats + image * 6 * count, count, best, inside, y, x, height, width, units)


@triton.jit
def _add_to_stats(stats, count, best, inside, y, x, height, width, units):
    """Add pixels to the statistics of their proposals, int64 [6, K].

    Args:
        stats: The statistics of the image.
        count: K.
        best: The proposal of each pixel.
        inside: Whether a pixel lies in the image.
        y: Row of each pixel.
        x: Column of each pixel.
        height: H.
        width: W.
        units: int64, the margin of each pixel in units of the statistics.
    """
    for proposal in range(count):
        wins = inside & (best == proposal)
        area = tl.sum(wins.to(tl.int32), axis=0)
        if area > 0:
            stat = stats + proposal
            tl.atomic_add(stat, area.to(tl.int64))
            tl.atomic_min(stat + count, tl.min(tl.where(wins, y, height), axis=0).to(tl.int64))
            tl.atomic_max(stat + 2 * count, tl.max(tl.where(wins, y, 0), axis=0).to(tl.int64))
            tl.atomic_min(stat + 3 * count, tl.min(tl.where(wins, x, width), axis=0).to(tl.int64))
            tl.atomic_max(stat + 4 * count, tl.max(tl.where(wins, x, 0), axis=0).to(tl.int64))
            tl.atomic_add(stat + 5 * count, tl.sum(tl.where(wins, units, 0), axis=0))


@triton.jit
def _relabel(labels, label_of, layout, count, pixels: tl.constexpr):
    """Replace the proposals of some pixels of an image by their labels, int16 [B, K]; see `_choose` for the others."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
    inside = pixel < tl.load(layout + 3 * image) * tl.load(layout + 3 * image + 1)
    target = labels + tl.load(layout + 3 * image + 2) + pixel
    proposal = tl.load(target, mask=inside, other=0).to(tl.int32)
    tl.store(target, tl.load(label_of + image * count + proposal, mask=inside, other=0), mask=inside)
