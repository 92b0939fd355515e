"""Turn proposals into a label map of any size with confidences, by non-maximum suppression (DiffSeg section 3.4).

Axes: K proposals, h and w tokens of the working grid, H and W pixels of the labelled region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from diffseg.attention.bilinear import HOST, bilinear_matrix
from diffseg.method.decision import MARGIN_UNIT, Decision, Stat, to_segmentation
from diffseg.method.kernels import runs_kernels
from diffseg.segmentation import Box, Segmentation

STRIPE_ELEMENTS = 2**20
"""Upsampled scores held at a time on a CPU: 4 MiB of float32, which stay in its cache."""

DEVICE_STRIPE_ELEMENTS = 2**27
"""Upsampled scores held at a time on any other device: 512 MiB of float32."""


class Region(NamedTuple):
    """What to label of an image.

    Attributes:
        size: Height and width of the label map in pixels.
        content: The part of the token grid that the pixels show, in tokens.
    """

    size: tuple[int, int]
    content: Box


def decide_on_device(scores: torch.Tensor, size: tuple[int, int], content: Box | None = None) -> Decision:
    """Decide a single image, see `decide_images`.

    Args:
        scores: float32 [K, h, w], ≥ 0 and finite.
        size: Height and width of the result in pixels.
        content: The part of the token grid that the pixels show, in tokens; default: all of it.
    """
    whole = Box(top=0, left=0, bottom=scores.shape[1], right=scores.shape[2])
    return decide_images(scores[None], [Region(size, content or whole)])[0]


def decide_images(
    scores: torch.Tensor,
    regions: Sequence[Region],
    *,
    keep_margins: bool = False,
    names: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> list[Decision]:
    """Upsample scores bilinearly and give each pixel to the proposal with the highest score.

    Ties go to the first proposal. No value is read back from the device, so the host does not wait for it. All images
    are decided together on a GPU with Triton; elsewhere, the images with the same region are.

    Args:
        scores: float32 [B, K, h, w], ≥ 0 and finite. More images than regions are padding.
        regions: What to label of each image.
        keep_margins: Whether to return the margin of each pixel.
        names: The index of each proposal's name, int64 [B, K], and the scores of these names, float32 [B, K], 0 to 1.

    Returns:
        The decision of each image.
    """
    if runs_kernels(scores.device):
        from diffseg.method.decide_kernel import decide_in_kernels

        sizes, contents = zip(*regions, strict=True)
        decisions = decide_in_kernels(scores, sizes, contents, keep_margins=keep_margins)
    else:
        images_of_region: dict[Region, list[int]] = {}
        for image, region in enumerate(regions):
            images_of_region.setdefault(region, []).append(image)
        by_image: dict[int, Decision] = {}
        for region, images in images_of_region.items():
            of_region = decide_batch(_select(scores, images), *region, keep_margins=keep_margins)
            by_image.update(zip(images, of_region, strict=True))
        decisions = [by_image[image] for image in range(len(regions))]
    return decisions if names is None else _with_names(decisions, *names)


def _select(scores: torch.Tensor, images: Sequence[int]) -> torch.Tensor:
    """Return the scores of some images. Indexing with a list would first copy the list to the device."""
    is_all = list(images) == list(range(len(scores)))
    return scores if is_all else torch.stack([scores[image] for image in images])


def _with_names(decisions: Sequence[Decision], names: torch.Tensor, scores: torch.Tensor) -> list[Decision]:
    """Return copies of the decisions whose statistics include names, int64 [B, K], and their scores."""
    rows = torch.stack([names, (scores * MARGIN_UNIT).to(torch.int64)], dim=1)[: len(decisions)]
    stats = torch.cat([torch.stack([decision.stats for decision in decisions]), rows], dim=1)
    return [replace(decision, stats=of_image) for decision, of_image in zip(decisions, stats, strict=True)]


def decide_batch(
    scores: torch.Tensor,
    size: tuple[int, int],
    content: Box,
    *,
    keep_margins: bool = False,
) -> list[Decision]:
    """Decide images of one size with torch. The number of operations does not depend on the number of images.

    Args:
        scores: float32 [B, K, h, w], ≥ 0 and finite.
        size: Height and width of the results in pixels.
        content: The part of the token grid that the pixels show, in tokens.
        keep_margins: Whether to return the margin of each pixel.
    """
    images, count, rows, columns = scores.shape
    height, width = size
    device = scores.device
    # The same matrix on the host and on the device: reading it from the device would wait for it.
    rows_of_tokens = bilinear_matrix(rows, height, start=content.top, stop=content.bottom, device=HOST)
    down = bilinear_matrix(rows, height, start=content.top, stop=content.bottom, device=device)
    along = bilinear_matrix(columns, width, start=content.left, stop=content.right, device=device)
    wide = (scores.permute(2, 0, 1, 3) @ along.T).reshape(rows, images * count * width)
    labels = torch.empty(images, *size, dtype=torch.int16, device=device)
    margins = torch.empty(images, *size, dtype=torch.uint8, device=device) if keep_margins else None
    tally = _Tally(size, images, count, device)
    elements = STRIPE_ELEMENTS if device.type == "cpu" else DEVICE_STRIPE_ELEMENTS
    step = max(1, elements // (images * count * width))
    stripes = [slice(start, start + step) for start in range(0, height, step)]
    for stripe in stripes:
        used = rows_of_tokens[stripe].any(dim=0).nonzero()
        tokens = slice(int(used[0]), int(used[-1]) + 1)
        upsampled = down[stripe, tokens] @ wide[tokens]
        best, margin = (pixels.view(-1, images, width) for pixels in _best_and_margin(upsampled.view(-1, count, width)))
        labels[:, stripe] = best.transpose(0, 1)
        tally.add(stripe, best, margin)
        if margins is not None:
            margins[:, stripe] = (margin * 255).round_().transpose(0, 1)
    stats = tally.stats()
    label_of = ((stats[:, Stat.AREA] > 0).cumsum(dim=1) - 1).to(torch.int16)
    for stripe in stripes:
        proposals = labels[:, stripe].flatten(1)
        labels[:, stripe] = label_of.gather(1, proposals.long()).view(images, -1, width)
    return [
        Decision(labels=labels[image], stats=stats[image], margins=None if margins is None else margins[image])
        for image in range(images)
    ]


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
    """Running counts of the pixels of each proposal by row and by column, and sums of margins.

    The tables are int64 [lines, B · K]: the proposals of the images lie side by side.
    """

    def __init__(self, size: tuple[int, int], images: int, count: int, device: torch.device) -> None:
        self.images = images
        self.in_rows, self.in_columns, self.margins = (
            torch.zeros(lines, images * count, dtype=torch.int64, device=device) for lines in (*size, 1)
        )
        self.first = torch.arange(0, images * count, count, device=device)[:, None]
        self.columns = torch.arange(size[1], device=device) * (images * count) + self.first

    def add(self, stripe: slice, best: torch.Tensor, margin: torch.Tensor) -> None:
        """Count the pixels of some rows: their proposals, int64 [n, B, W], and margins, float32 [n, B, W]."""
        stride = self.in_rows.shape[1]
        rows = torch.arange(0, len(best) * stride, stride, device=best.device)[:, None, None] + self.first
        _scatter(self.in_rows[stripe], rows, best)
        _scatter(self.in_columns, self.columns, best)
        _scatter(self.margins, self.first, best, (margin * MARGIN_UNIT).to(torch.int64))

    def stats(self) -> torch.Tensor:
        """Return the statistics, int64 [B, 6, K], in the order of `Stat`."""
        areas = self.in_rows.sum(dim=0)
        rows = torch.stack([areas, *_extent(self.in_rows), *_extent(self.in_columns), self.margins[0]])
        return rows.unflatten(1, (self.images, -1)).transpose(0, 1).contiguous()


def _scatter(table: torch.Tensor, first: torch.Tensor, best: torch.Tensor, amount: torch.Tensor | None = None) -> None:
    """Add 1, or `amount`, per pixel to the element of its line, its image and its proposal.

    Args:
        table: int64 [lines, B · K].
        first: int64, broadcast to [n, B, W], the element of each pixel's line and image for proposal 0.
        best: int64 [n, B, W], the proposals.
        amount: int64 [n, B, W].
    """
    elements = (first + best).flatten()
    added = table.new_ones(1).expand_as(elements) if amount is None else amount.flatten()
    table.view(-1).scatter_add_(0, elements, added)


def _extent(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first and the last line in which each proposal has pixels, of int64 [lines, K]."""
    present = (table > 0).to(torch.uint8)
    return present.argmax(dim=0), len(table) - 1 - present.flip(0).argmax(dim=0)


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
