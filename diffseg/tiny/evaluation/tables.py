"""Tables of scores as Markdown, which is read as well where it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from diffseg.scoring.bootstrap import Interval

__all__ = ["heading", "markdown", "number", "signed"]

HEADINGS = {
    "miou": "mIoU, matched per image",
    "best_iou": "mean best IoU",
    "boundary_f": "boundary F, 2 px",
    "accuracy": "pixel accuracy",
    "seconds": "s/image",
}
DIGITS = {"segments": 1, "seconds": 2}


def heading(score: str) -> str:
    """What a column of this score is called."""
    return HEADINGS.get(score, score)


def number(score: str, interval: Interval) -> str:
    """The mean of a score and half the width of its interval."""
    digits = DIGITS.get(score, 3)
    return f"{interval.mean:.{digits}f} ± {interval.half_width:.{digits}f}"


def signed(score: str, interval: Interval) -> str:
    """The same of a difference, with its sign."""
    return f"{'+' if interval.mean >= 0 else '−'}{number(score, replace(interval, mean=abs(interval.mean)))}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers, filled up so that columns stand in line."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"

    return "\n".join([line(header), line(rule), *map(line, rows)])
