"""The label map of an image as a device computes it, and the result that is made from it on the host.

Axes: K proposals, H and W pixels of the labelled region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

from diffseg.method.naming import name_of
from diffseg.segmentation import IGNORE, Box, Segment, Segmentation

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
