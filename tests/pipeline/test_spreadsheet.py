"""Cells of CSV files do not run as formulas."""

from __future__ import annotations

import pytest

from pipeline.spreadsheet import text_cell


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "'"])
def test_a_text_that_a_spreadsheet_would_run_gets_an_apostrophe(text: str) -> None:
    assert text_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "a.png", "1", "a=1", "é", " =1"])
def test_other_texts_stay(text: str) -> None:
    assert text_cell(text) == text
