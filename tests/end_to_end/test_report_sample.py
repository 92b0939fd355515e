"""A sample on the page of `diffseg report` in Chromium: highlights, full size, scores, the address and marks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelled_runs import shards_of_keys
from PIL import Image
from playwright.sync_api import Page, expect
from report_browser import HOSTILE, STRIPES, opened
from report_runs import labelled, write_rows

import jobs.report
from diffseg.scoring.scores import IMAGE_SCORES
from pipeline.output.selection import read_keys
from pipeline.storage import Storage

pytestmark = pytest.mark.browser

SCORES = ("0.75", "0.25")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the page of two images of 600 x 400 pixels with scores."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "in").mkdir()
    for number in range(2):
        Image.fromarray(np.full((400, 600, 3), 90, np.uint8)).save(folder / f"in/{number}.png")
    labels = STRIPES.repeat(10, 0).repeat(10, 1)
    rows = [labelled(f"{number}.png", labels) for number in range(2)]
    out = write_rows(str(folder / "out"), rows, per_shard=10, source=str(folder / "in"))
    shard = next(iter(shards_of_keys(["0.png", "1.png"], 10)))
    values = "".join(f"this run,{n}.png,{shard},{n},,,,,,{','.join([score] * 8)}\n" for n, score in enumerate(SCORES))
    head = ",".join(
        ("method", "key", "shard", "row", "height", "width", "regions", "segments", "missed", *IMAGE_SCORES)
    )
    out.write_bytes("report/images.csv", f"{head}\n{values}".encode())
    assert jobs.report.main([str(folder / "out"), "--processes", "1"]) == 0
    return folder / "out/report/index.html"


def test_a_click_highlights_a_segment_and_names_it(page: Page, small_report: Path) -> None:
    opened(page, small_report)
    page.get_by_label("Search").fill("003")
    page.locator("#grid button").click()
    stage = page.locator("#stage")
    box = stage.bounding_box()
    assert box["width"] > 600  # much larger than in the gallery
    page.mouse.click(box["x"] + box["width"] / 6, box["y"] + box["height"] / 2)  # the first of three stripes
    expect(stage.locator(".tag")).to_have_text("sky 33.3 % · score 0.90")
    expect(page.get_by_role("row", selected=True)).to_contain_text("sky")
    read = """canvas => {
      const row = canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 20, 60, 1).data;
      return [10, 30, 50].map((x) => Math.max(...row.slice(4 * x, 4 * x + 3)));
    }"""
    mask = stage.locator(".mask")
    first, second, third = mask.evaluate(read)
    assert first > 100
    assert max(second, third) < 60  # dimmed
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(stage.locator(".tag bdi")).to_have_text(HOSTILE)
    page.get_by_role("button", name="2", exact=True).click()  # in the table; the segment has no name
    expect(stage.locator(".tag")).to_have_text("segment 2 33.3 % · 0.08")
    page.get_by_role("button", name="2", exact=True).click()
    expect(stage.locator(".tag")).to_have_count(0)
    assert min(mask.evaluate(read)) > 100
    page.get_by_role("button", name="Actual pixels").click()
    assert stage.bounding_box()["width"] == 60


def test_names_are_readable_on_every_colour(page: Page, small_report: Path) -> None:
    def luminance(colour: str) -> float:
        shares = [part / 255 for part in bytes.fromhex(colour[1:])]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    opened(page, small_report)
    random = np.random.default_rng(0).integers(0, 256, (500, 3)).astype(np.uint8)
    colours = [f"#{colour.tobytes().hex()}" for colour in random]
    inks = page.evaluate("colours => colours.map(inkOn)", colours)
    for colour, ink in zip(colours, inks, strict=True):
        low, high = sorted((luminance(colour), luminance(ink)))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG 2, level AA


def test_the_address_keeps_filters_the_open_sample_and_the_segment(page: Page, small_report: Path) -> None:
    opened(page, small_report)
    page.get_by_label("Search").fill("00")
    page.get_by_label("Order").select_option("highest confidence first")
    page.get_by_label("Name").select_option("sky")
    page.locator("#grid button").nth(1).click()
    page.get_by_role("dialog").get_by_role("button", name="sky").click()
    wanted = "#gallery?search=00&name=sky&order=sure&sample=008.png&segment=0"
    page.wait_for_function("wanted => location.hash === wanted", arg=wanted)
    page.goto("about:blank")
    page.goto(f"{small_report.as_uri()}{wanted}")
    expect(page.locator("#stage .tag")).to_contain_text("sky")
    expect(page.locator("#detail-facts")).to_contain_text("2 of 10")
    page.keyboard.press("Escape")
    expect(page.get_by_label("Search")).to_have_value("00")
    expect(page.locator("#grid li").first).to_contain_text("009.png")
    page.get_by_role("link", name="Numbers").click()
    page.get_by_role("link", name="Gallery").click()
    page.wait_for_function("() => location.hash === '#gallery?search=00&name=sky&order=sure'")
    page.goto(f"{small_report.as_uri()}#gallery?status=too_large&sample=nowhere&name=gone")
    expect(page.locator("#found")).to_have_text("1 of 42 rows")


def test_marked_keys_are_kept_and_saved_for_keys(page: Page, small_report: Path, tmp_path: Path) -> None:
    opened(page, small_report)
    page.get_by_label("Mark 001.png").check()
    page.get_by_label("Mark 000.png").check()
    expect(page.locator("#marked-count")).to_have_text("2 marked")
    opened(page, small_report)
    expect(page.get_by_label("Mark 001.png")).to_be_checked()
    page.get_by_label("Marked only").check()
    expect(page.locator("#found")).to_have_text("2 of 42 rows")
    with page.expect_download() as download:
        page.get_by_role("button", name="save their keys").click()
    download.value.save_as(tmp_path / "keys.txt")
    assert read_keys(Storage(url="."), str(tmp_path / "keys.txt")) == {"000.png", "001.png"}
    expect(page.locator("#saved")).to_contain_text("keys.txt has 2 keys")
    page.get_by_role("button", name="unmark all").click()
    expect(page.locator("#nothing")).to_contain_text("No row has a mark.")


def test_full_size_pictures_and_scores(page: Page, large: Path) -> None:
    opened(page, large)
    page.get_by_label("Order").select_option("lowest covering first")
    expect(page.locator("#grid li").first).to_contain_text("1.png3 segments · 0.50covering 0.25")
    page.get_by_label("Minimum covering").fill("0.5")
    expect(page.locator("#found")).to_have_text("1 of 2 rows")
    page.locator("#grid button").click()
    photograph = page.locator("#stage .photograph")
    expect(page.locator("#stage .mask")).to_have_js_property("width", 600)
    assert photograph.evaluate("image => image.decode().then(() => image.naturalWidth)") == 600
    expect(page.get_by_role("row", name="covering")).to_have_text("covering0.75")
