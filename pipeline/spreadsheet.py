"""Cells of CSV files that spreadsheets show as they are."""

from __future__ import annotations

import re

_FORMULA = re.compile(r"[=+\-@\t\r']")


def text_cell(text: str) -> str:
    """Return a text for a cell of a CSV file.

    Spreadsheets run a cell that begins with one of =, +, - and @ as a formula, also behind a tab or a carriage return.
    Such a text gets an apostrophe in front, which spreadsheets take for "this is text". So does one that begins with an
    apostrophe itself: without the first apostrophe, the cell is the text again.
    """
    return f"'{text}" if _FORMULA.match(text) else text
