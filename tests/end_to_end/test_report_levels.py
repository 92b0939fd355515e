"""The slider of levels on the page of `diffseg report` in Chromium."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelled_runs import write_png, write_run
from playwright.sync_api import Page, expect
from report_browser import opened

import jobs.report

pytestmark = pytest.mark.browser

LABELS = np.repeat(np.repeat(np.arange(3, dtype=np.uint16)[None], 30, axis=0), 20, axis=1)


def test_the_slider_divides_and_joins_the_segments_of_a_sample(page: Page, tmp_path: Path) -> None:
    write_png(tmp_path / "in/a.png", np.full((30, 60, 3), 90, np.uint8))
    write_run(tmp_path / "out", {"a.png": LABELS}, source=tmp_path / "in", levels=True)
    assert jobs.report.main([str(tmp_path / "out"), "--processes", "1"]) == 0
    opened(page, tmp_path / "out/report/index.html")
    page.locator("#grid button").click()
    slider, text, mask = (
        page.get_by_role("slider", name="Level"),
        page.locator(".level output"),
        page.locator("#stage .mask"),
    )
    expect(text).to_have_text("3 segments, the level of the run")
    colours = """canvas => {
      const row = canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 10, 60, 1).data;
      return [5, 25, 35, 55].map((x) => row.slice(4 * x, 4 * x + 3).join());
    }"""
    first, *middle, last = mask.evaluate(colours)
    assert middle[0] == middle[1]
    assert len({first, middle[0], last}) == 3
    slider.fill("0")
    expect(text).to_have_text("6 segments, the finest level")
    expect(mask).to_have_js_property("width", 60)
    left, right = mask.evaluate(colours)[1:3]
    assert left != right, "the middle segment consists of two leaves"
    slider.fill("4")
    expect(text).to_have_text("2 segments, merged up to 1")
    joined = mask.evaluate(colours)
    assert joined[0] == joined[1] == joined[2] != joined[3]
    slider.press("ArrowRight")
    expect(text).to_have_text("1 segment, merged up to 2")
    expect(page.locator("#detail-key")).to_have_text("a.png")
    slider.fill("3")
    expect(text).to_have_text("3 segments, the level of the run")
    assert mask.evaluate(colours) == [first, *middle, last]
