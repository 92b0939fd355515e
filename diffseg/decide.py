"""Proposals into a label map at any size, and how sure it is (non-maximum suppression, DiffSeg section 3.4).

Axes: K proposals, h and w tokens of the working grid, H and W pixels of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

IGNORE = 65535
"""Label of pixels that no segment claims: those outside of a centre crop."""

STRIPE_ELEMENTS = 2**23
"""Upsampled scores held at a time: 32 MiB of float32."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle, half-open: rows [top, bottom), columns [left, right)."""

    top: float
    left: float
    bottom: float
    right: float


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment of a label map.

    id: its label. area: pixels. bbox: (x, y, width, height) in pixels. confidence: 0 to 1, mean margin of its pixels.
    """

    id: int
    area: int
    bbox: tuple[int, int, int, int]
    confidence: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """labels: uint16 [H, W], 0 … K−1, all present, and `IGNORE`. segments: one a label, in order.

    confidence: 0 to 1, mean margin between best and second proposal over the labelled pixels.
    """

    labels: np.ndarray
    segments: tuple[Segment, ...]
    confidence: float


def _axis(tokens: int, pixels: int, start: float, stop: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lower token, upper token and weight of the upper one for each of `pixels` between start and stop in tokens."""
    centres = start + (np.arange(pixels) + 0.5) * ((stop - start) / pixels) - 0.5
    centres = np.clip(centres, 0, tokens - 1)
    lower = np.minimum(centres.astype(np.int64), max(tokens - 2, 0))
    upper = np.minimum(lower + 1, tokens - 1)
    return torch.from_numpy(lower), torch.from_numpy(upper), torch.from_numpy((centres - lower).astype(np.float32))


def _best_and_margin(scores: torch.Tensor, size: tuple[int, int], content: Box) -> tuple[np.ndarray, np.ndarray]:
    """Index of the best proposal, int64 [H, W], ties to the lowest, and (best − second) / best, float32 [H, W]."""
    count, rows, columns = scores.shape
    height, width = size
    left, right, along = (t.to(scores.device) for t in _axis(columns, width, content.left, content.right))
    top, bottom, down = (t.to(scores.device) for t in _axis(rows, height, content.top, content.bottom))
    wide = torch.lerp(scores[:, :, left], scores[:, :, right], along)  # [K, h, W]
    best = np.empty(size, dtype=np.int64)
    margin = np.empty(size, dtype=np.float32)
    step = max(1, STRIPE_ELEMENTS // (count * width))
    for start in range(0, height, step):
        stripe = slice(start, min(start + step, height))
        fine = torch.lerp(wide[:, top[stripe]], wide[:, bottom[stripe]], down[stripe, None])
        first, index = fine.max(dim=0)
        second = torch.zeros_like(first)
        if count > 1:
            second = fine.scatter_(0, index[None], -1).amax(dim=0)
        best[stripe] = index.cpu().numpy()
        margin[stripe] = ((first - second) / first.clamp_min(torch.finfo(torch.float32).tiny)).cpu().numpy()
    return best, margin


def decide(
    scores: torch.Tensor, size: tuple[int, int], *, content: Box | None = None, region: Box | None = None
) -> Segmentation:
    """Upsample bilinearly, give each pixel to the highest proposal, renumber what is left, 0 to K−1.

    scores: float32 [K, h, w], ≥ 0 and finite. size: (H, W) of the image in pixels. content: where in the token grid the
    labelled region lies, in tokens (default: all of it). region: the labelled pixels of the image (default: all),
    whole numbers; the others are `IGNORE`.
    """
    _, rows, columns = scores.shape
    content = content or Box(top=0, left=0, bottom=rows, right=columns)
    region = region or Box(top=0, left=0, bottom=size[0], right=size[1])
    top, left, bottom, right = int(region.top), int(region.left), int(region.bottom), int(region.right)
    best, margin = _best_and_margin(scores, (bottom - top, right - left), content)
    present, inside = np.unique(best, return_inverse=True)
    inside = inside.reshape(best.shape)
    labels = np.full(size, IGNORE, dtype=np.uint16)
    labels[top:bottom, left:right] = inside
    areas = np.bincount(inside.ravel(), minlength=len(present))
    margins = np.bincount(inside.ravel(), weights=margin.ravel(), minlength=len(present))
    segments = tuple(
        Segment(id=k, area=int(areas[k]), bbox=box, confidence=float(np.clip(margins[k] / areas[k], 0, 1)))
        for k, box in enumerate(bounding_boxes(inside, len(present), offset=(left, top)))
    )
    return Segmentation(labels=labels, segments=segments, confidence=float(np.clip(margins.sum() / areas.sum(), 0, 1)))


def bounding_boxes(
    labels: np.ndarray, count: int, *, offset: tuple[int, int] = (0, 0)
) -> list[tuple[int, int, int, int]]:
    """(x, y, width, height) in pixels of each label 0 … count−1 of int [H, W]; all must be present."""

    def extent(axis: int) -> tuple[np.ndarray, np.ndarray]:
        lines = labels if axis == 0 else labels.T
        seen = np.zeros((len(lines), count), dtype=bool)
        seen[np.repeat(np.arange(len(lines)), lines.shape[1]), lines.ravel()] = True
        return seen.argmax(axis=0), len(lines) - seen[::-1].argmax(axis=0)

    (top, bottom), (left, right) = extent(0), extent(1)
    x, y = offset
    return [(int(left[k]) + x, int(top[k]) + y, int(right[k] - left[k]), int(bottom[k] - top[k])) for k in range(count)]
