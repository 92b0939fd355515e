"""Tables of scores in Markdown, aligned so that they are also readable on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from diffseg.scoring.bootstrap import Interval

__all__ = ["column_heading", "format_difference", "format_mean", "markdown"]

HEADINGS = {
    "miou": "mIoU, matched per image",
    "best_iou": "mean best IoU",
    "boundary_f": "boundary F, 2 px",
    "accuracy": "pixel accuracy",
    "seconds": "s/image",
}
"""Headings of scores whose names are not used as headings."""
DIGITS = {"segments": 1, "seconds": 2}
"""Decimal places of scores that do not have three."""


def column_heading(score: str) -> str:
    """Return the heading of the column of a score."""
    return HEADINGS.get(score, score)


def format_mean(score: str, interval: Interval) -> str:
    """Format the mean of a score with half the width of its interval."""
    digits = DIGITS.get(score, 3)
    return f"{interval.mean:.{digits}f} ± {interval.half_width:.{digits}f}"


def format_difference(score: str, interval: Interval) -> str:
    """Format the mean of a difference of scores, with its sign and half the width of its interval."""
    return f"{'+' if interval.mean >= 0 else '−'}{format_mean(score, replace(interval, mean=abs(interval.mean)))}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, padded so that its columns are aligned; the first column is text, the others are numbers."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"

    return "\n".join([line(header), line(rule), *map(line, rows)])
