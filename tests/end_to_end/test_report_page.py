"""The page of `diffseg report` in Chromium, from the disk: clicks, keys, hostile rows, ten thousand rows."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from report_browser import HOSTILE, STRIPES, TIMEOUT, opened
from report_runs import labelled_png, write_rows

import jobs.report
from pipeline.output.rows import encode_mask

pytestmark = pytest.mark.browser

PHONE = {"width": 390, "height": 844}
MANY = 10_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the page of 10,000 rows."""
    folder = tmp_path_factory.mktemp("many")
    labels = STRIPES[::2, ::2]
    mask = encode_mask(labels)
    rows = (labelled_png(f"{number:05d}.png", mask, labels, None, number / MANY) for number in range(MANY))
    write_rows(str(folder), rows, per_shard=2500, source="gone")
    assert jobs.report.main([str(folder), "--processes", "1"]) == 0
    return folder / "report/index.html"


def keys_shown(page: Page) -> list[str]:
    return sorted(page.locator("#grid .caption bdi").all_text_contents())


def test_pictures_are_shown_as_image_overlay_and_mask(page: Page, small_report: Path) -> None:
    opened(page, small_report)
    card = page.locator("#grid li").first
    photograph, mask = card.locator(".photograph"), card.locator(".mask")
    expect(photograph).to_have_attribute("alt", "Source image 000.png")
    assert photograph.evaluate("image => image.decode().then(() => image.naturalWidth)") == 60
    assert mask.evaluate("canvas => canvas.width") == 60
    expect(mask).to_have_css("opacity", "0.55")
    page.get_by_text("image", exact=True).click()
    expect(mask).to_be_hidden()
    expect(photograph).to_be_visible()
    page.get_by_text("mask", exact=True).click()
    expect(mask).to_have_css("opacity", "1")
    expect(photograph).to_be_hidden()
    page.get_by_text("overlay", exact=True).click()
    page.get_by_label("Opacity").focus()
    page.keyboard.press("Home")
    expect(mask).to_have_css("opacity", "0")


def test_filters_search_and_order(page: Page, small_report: Path) -> None:
    opened(page, small_report)
    found = page.locator("#found")
    expect(found).to_have_text("42 rows")
    page.get_by_label("Search").fill("01")
    expect(found).to_have_text("11 of 42 rows")
    assert keys_shown(page) == ["001.png", *(f"01{digit}.png" for digit in range(10))]
    page.get_by_label("Minimum confidence").fill("0.4")
    expect(found).to_have_text("4 of 42 rows")
    page.get_by_label("Maximum number of segments").fill("2")
    expect(found).to_have_text("2 of 42 rows")
    page.get_by_role("button", name="Clear").click()
    expect(found).to_have_text("42 rows")
    page.get_by_label("Status").select_option("too_large")
    expect(page.locator("#grid li")).to_have_text("has 2³² pixelslarge.pngtoo_large")
    page.get_by_label("Status").select_option("")
    page.get_by_label("Name").select_option("sky")
    expect(found).to_have_text("10 of 42 rows")
    page.get_by_label("Order").select_option("highest confidence first")
    expect(page.locator("#grid li").first).to_contain_text("009.png")


def test_the_page_can_be_used_with_the_keyboard_alone(page: Page, small_report: Path) -> None:
    opened(page, small_report)
    page.keyboard.press("/")
    page.keyboard.type("00")
    expect(page.locator("#found")).to_have_text("10 of 42 rows")
    page.locator("#grid button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#grid button:focus")).to_contain_text("002.png")
    page.keyboard.press("End")
    expect(page.locator("#grid button:focus")).to_contain_text("009.png")
    page.keyboard.press("1")
    expect(page.locator("#grid .mask").first).to_be_hidden()
    page.keyboard.press("Enter")
    detail = page.get_by_role("dialog")
    expect(detail.locator("h2")).to_have_text("009.png")
    expect(detail.get_by_role("button", name="Next sample")).to_be_disabled()
    page.keyboard.press("ArrowLeft")
    expect(detail.locator("h2")).to_have_text("008.png")
    page.keyboard.press("2")
    expect(detail.locator(".mask")).to_have_css("opacity", "0.55")
    page.keyboard.press("m")
    expect(detail.get_by_label("Mark")).to_be_checked()
    expect(detail.get_by_role("row")).to_have_count(3)
    page.keyboard.press("Escape")
    expect(detail).to_be_hidden()
    expect(page.locator("#grid button:focus")).to_contain_text("008.png")


def test_a_hint_names_the_filters_that_no_row_matches(page: Page, small_report: Path) -> None:
    opened(page, small_report)
    expect(page.locator("#nothing")).to_be_hidden()
    page.get_by_label("Search").fill("<b>")
    page.get_by_label("Minimum confidence").fill("0.9")
    expect(page.locator("#nothing-why")).to_have_text("No row has a key with “<b>” and confidence from 0.9.")
    page.get_by_role("button", name="Clear the filters").click()
    expect(page.locator("#found")).to_have_text("42 rows")
    expect(page.locator("#nothing")).to_be_hidden()


def test_tools_stand_on_two_lines_on_a_desktop(page: Page, small_report: Path) -> None:
    opened(page, small_report)
    top = {name: page.locator(f"#{name}").bounding_box()["y"] for name in ("search", "most-confidence", "opacity")}
    assert top["search"] == top["most-confidence"] < top["opacity"]
    clear, label = page.get_by_role("button", name="Clear", exact=True), page.get_by_text("Opacity", exact=True)
    assert abs(clear.bounding_box()["y"] - top["opacity"]) < 3
    assert label.bounding_box()["y"] < top["opacity"]
    assert abs(label.bounding_box()["x"] - page.locator("#opacity").bounding_box()["x"]) < 3


def test_hostile_rows_are_text(page: Page, small_report: Path) -> None:
    opened(page, small_report)
    page.get_by_label("Search").fill("onerror")
    expect(page.locator("#grid .caption bdi")).to_have_text(HOSTILE)
    page.locator("#grid button").click()
    expect(page.locator("#detail-key")).to_have_text(HOSTILE)
    expect(page.locator("#detail-more")).to_contain_text("window.hit=1")
    page.get_by_role("button", name="Close").click()
    page.get_by_label("Search").fill("003")
    page.locator("#grid button").click()
    expect(page.get_by_role("dialog").get_by_role("cell", name=HOSTILE)).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Failures").click()
    expect(page.locator("#failures")).to_contain_text(HOSTILE)
    assert page.evaluate("window.hit") is None


def test_the_content_security_policy_blocks_injected_scripts(browser: Browser, small_report: Path) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        opened(page, small_report)
        with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
            page.evaluate(
                "document.body.insertAdjacentHTML('afterbegin', '<b onclick=\"window.hit=1\" id=planted>here</b>')"
            )
            page.locator("#planted").click()
        assert page.evaluate("window.hit") is None


def test_failures_numbers_and_settings(page: Page, small_report: Path) -> None:
    opened(page, small_report, "#numbers")
    expect(page.get_by_role("img", name="Segments per image")).to_be_visible()
    expect(page.locator("#numbers")).to_contain_text("The run has one shard")
    page.get_by_role("button", name="sky").click()
    expect(page.locator("#found")).to_have_text("10 of 42 rows")
    page.get_by_role("link", name="Settings").click()
    expect(page.get_by_role("row", name="fingerprint")).to_contain_text("0123456789abcdef")
    page.get_by_role("link", name="Failures").click()
    page.get_by_role("button", name="too_large").click()
    expect(page.locator("#found")).to_have_text("1 of 42 rows")


def test_ten_thousand_rows_open_at_once_and_scroll(page: Page, many: Path) -> None:
    started = time.monotonic()
    opened(page, many)
    first = time.monotonic() - started
    expect(page.locator("#found")).to_have_text("10,000 rows")
    every = time.monotonic() - started
    scripts = "performance.getEntriesByType('resource').filter(entry => entry.name.includes('tiles-')).length"
    assert page.evaluate(scripts) <= 4
    slowest = page.evaluate(
        """async () => {
          const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
          let slowest = 0, before = await frame();
          for (let step = 0; step < 60; step++) {
            scrollBy(0, 400);
            const now = await frame();
            slowest = Math.max(slowest, now - before);
            before = now;
          }
          return slowest;
        }"""
    )
    cards = page.locator("#grid li")
    assert 0 < cards.count() < 150
    page.locator("#grid button").first.focus()
    page.keyboard.press("End")
    expect(page.locator("#grid button:focus")).to_contain_text("09999.png")
    expect(page.locator("#grid button:focus canvas")).to_be_visible()
    page.get_by_label("Search").fill("04567")
    expect(page.locator("#found")).to_have_text("1 of 10,000 rows")
    expect(page.locator("#grid canvas.alone")).to_have_css("opacity", "1")  # SRC is gone: segments alone
    expect(page.locator(".note").first).to_contain_text("without their source images")
    page.goto("about:blank")
    opened(page, many, "#gallery?order=sure&sample=01234.png")
    expect(page.locator("#detail-facts")).to_have_text("row 1234 of shard images-000000 · 8,766 of 10,000")
    seconds = f"first pictures after {first:.2f} s, all rows after {every:.2f} s"
    print(f"\n10,000 rows: {seconds}, slowest frame {slowest:.0f} ms")


@pytest.mark.parametrize("view", ["", "#numbers", "#failures", "#settings"])
def test_a_phone_shows_the_page_without_horizontal_scrolling(page: Page, small_report: Path, view: str) -> None:
    page.set_viewport_size(PHONE)
    opened(page, small_report, view)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    if not view:
        first, second = (page.locator("#grid li").nth(number).bounding_box() for number in (0, 1))
        assert first["y"] == second["y"]  # two columns
        assert first["y"] + first["height"] / 2 < PHONE["height"], "pictures are out of sight"
        expect(page.get_by_label("Status")).to_be_hidden()
        page.get_by_role("button", name="Filters").click()
        page.get_by_label("Status").select_option("ok")
        expect(page.locator("#found")).to_have_text("40 of 42 rows")
        page.locator("#grid button").first.click()
        assert page.get_by_role("dialog").bounding_box()["width"] <= PHONE["width"]
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_light_and_dark(page: Page, small_report: Path) -> None:
    def lightness(name: str) -> float:
        colour = page.evaluate(f"getComputedStyle(document.body).{name}")
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")) / 3

    opened(page, small_report)
    page.emulate_media(color_scheme="light")
    assert lightness("backgroundColor") > 220
    assert lightness("color") < 60
    page.emulate_media(color_scheme="dark")
    assert lightness("backgroundColor") < 40
    assert lightness("color") > 200
