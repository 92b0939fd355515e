"""Chromium, a tab that notices problems, and the report page that tests open in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from report_runs import failed, labelled, write_rows

import jobs.report

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT = 60_000
"""Milliseconds that a step may take on a busy machine."""
HOSTILE = '"><img src=x onerror="window.hit=1"><script>window.hit=1</script>\u202e.png'
STRIPES = np.repeat(np.arange(3, dtype=np.uint16), 20)[None].repeat(40, 0)  # 40 x 60 pixels


@contextmanager
def start_chromium() -> Iterator[Browser]:
    """Start a headless Chromium; without the program, the test is skipped."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("needs Chromium on the PATH: apt-get install chromium")
    with sync_playwright() as driver:
        # The root user of a container cannot use the sandbox, and has little shared memory.
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        running = driver.chromium.launch(executable_path=program, args=flags, timeout=TIMEOUT)
        expect.set_options(timeout=TIMEOUT)
        yield running
        running.close()


@contextmanager
def open_tab(browser: Browser) -> Iterator[Page]:
    """Open an empty tab. The block fails if a script fails, or if the page requests anything but a file."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        context.set_default_timeout(TIMEOUT)
        tab, problems = context.new_page(), []
        tab.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("dialog", lambda dialog: problems.append(dialog.message))
        tab.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:", "blob:file:", "blob:null", "about:"))
                or problems.append(request.url)
            ),
        )
        yield tab
        assert not problems


def write_small_page(folder: Path) -> Path:
    """Write the page of 40 labelled rows, ten with names, and two failed ones. Some keys and errors are hostile."""
    (folder / "in").mkdir()
    rows = []
    for number in range(40):
        key = f"{number:03d}.png"
        shade = np.full((40, 60, 3), 200, np.uint8)
        shade[:20] = 40
        Image.fromarray(shade).save(folder / "in" / key)
        labels = STRIPES if number % 2 else np.minimum(STRIPES, 1)
        rows.append(labelled(key, labels, {0: "sky", 1: HOSTILE} if number < 10 else None, number / 40))
    rows += [failed(HOSTILE, "undecodable", HOSTILE), failed("large.png", "too_large", "has 2³² pixels")]
    write_rows(str(folder / "out"), rows, per_shard=10**9, source=str(folder / "in"), failures=[HOSTILE])
    assert jobs.report.main([str(folder / "out"), "--processes", "1"]) == 0
    return folder / "out/report/index.html"


def opened(page: Page, path: Path, view: str = "") -> Page:
    """Open a page, and wait for its first pictures unless a view is given."""
    page.goto(f"{path.as_uri()}{view}")
    if not view:
        expect(page.locator("#found")).to_contain_text("rows")
        expect(page.locator("#grid li canvas, #grid .failed").first).to_be_visible()
    return page
