"""The page of `diffseg report` in Chromium, from the disk: clicks, keys, hostile rows, ten thousand rows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from labelled_runs import shards_of_keys
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from report_runs import failed, labelled, labelled_png, write_rows

import jobs.report
from diffseg.scoring.scores import IMAGE_SCORES
from pipeline.output.rows import encode_mask
from pipeline.output.selection import read_keys
from pipeline.storage import Storage

pytestmark = pytest.mark.browser

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT = 60_000
"""Milliseconds that a step may take on a busy machine."""
HOSTILE = '"><img src=x onerror="window.hit=1"><script>window.hit=1</script>\u202e.png'
STRIPES = np.repeat(np.arange(3, dtype=np.uint16), 20)[None].repeat(40, 0)  # 40 x 60 pixels
PHONE = {"width": 390, "height": 844}
MANY = 10_000
SCORES = ("0.75", "0.25")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start one headless Chromium for all tests of this file."""
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


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the page of 40 labelled rows, ten with names, and two failed ones. Some keys and errors are hostile."""
    folder = tmp_path_factory.mktemp("small")
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


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Open an empty tab. The test fails if a script fails, or if the page requests anything but a file."""
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


def opened(page: Page, path: Path, view: str = "") -> Page:
    page.goto(f"{path.as_uri()}{view}")
    if not view:
        expect(page.locator("#found")).to_contain_text("rows")
        expect(page.locator("#grid li canvas, #grid .failed").first).to_be_visible()
    return page


def keys_shown(page: Page) -> list[str]:
    return sorted(page.locator("#grid .caption bdi").all_text_contents())


def test_pictures_are_shown_as_image_overlay_and_mask(page: Page, small: Path) -> None:
    opened(page, small)
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


def test_filters_search_and_order(page: Page, small: Path) -> None:
    opened(page, small)
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


def test_the_page_can_be_used_with_the_keyboard_alone(page: Page, small: Path) -> None:
    opened(page, small)
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


def test_a_click_highlights_a_segment_and_names_it(page: Page, small: Path) -> None:
    opened(page, small)
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


def test_names_are_readable_on_every_colour(page: Page, small: Path) -> None:
    def luminance(colour: str) -> float:
        shares = [part / 255 for part in bytes.fromhex(colour[1:])]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    opened(page, small)
    random = np.random.default_rng(0).integers(0, 256, (500, 3)).astype(np.uint8)
    colours = [f"#{colour.tobytes().hex()}" for colour in random]
    inks = page.evaluate("colours => colours.map(inkOn)", colours)
    for colour, ink in zip(colours, inks, strict=True):
        low, high = sorted((luminance(colour), luminance(ink)))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG 2, level AA


def test_the_address_keeps_filters_the_open_sample_and_the_segment(page: Page, small: Path) -> None:
    opened(page, small)
    page.get_by_label("Search").fill("00")
    page.get_by_label("Order").select_option("highest confidence first")
    page.get_by_label("Name").select_option("sky")
    page.locator("#grid button").nth(1).click()
    page.get_by_role("dialog").get_by_role("button", name="sky").click()
    wanted = "#gallery?search=00&name=sky&order=sure&sample=008.png&segment=0"
    page.wait_for_function("wanted => location.hash === wanted", arg=wanted)
    page.goto("about:blank")
    page.goto(f"{small.as_uri()}{wanted}")
    expect(page.locator("#stage .tag")).to_contain_text("sky")
    expect(page.locator("#detail-facts")).to_contain_text("2 of 10")
    page.keyboard.press("Escape")
    expect(page.get_by_label("Search")).to_have_value("00")
    expect(page.locator("#grid li").first).to_contain_text("009.png")
    page.get_by_role("link", name="Numbers").click()
    page.get_by_role("link", name="Gallery").click()
    page.wait_for_function("() => location.hash === '#gallery?search=00&name=sky&order=sure'")
    page.goto(f"{small.as_uri()}#gallery?status=too_large&sample=nowhere&name=gone")
    expect(page.locator("#found")).to_have_text("1 of 42 rows")


def test_marked_keys_are_kept_and_saved_for_keys(page: Page, small: Path, tmp_path: Path) -> None:
    opened(page, small)
    page.get_by_label("Mark 001.png").check()
    page.get_by_label("Mark 000.png").check()
    expect(page.locator("#marked-count")).to_have_text("2 marked")
    opened(page, small)
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


def test_a_hint_names_the_filters_that_no_row_matches(page: Page, small: Path) -> None:
    opened(page, small)
    expect(page.locator("#nothing")).to_be_hidden()
    page.get_by_label("Search").fill("<b>")
    page.get_by_label("Minimum confidence").fill("0.9")
    expect(page.locator("#nothing-why")).to_have_text("No row has a key with “<b>” and confidence from 0.9.")
    page.get_by_role("button", name="Clear the filters").click()
    expect(page.locator("#found")).to_have_text("42 rows")
    expect(page.locator("#nothing")).to_be_hidden()


def test_tools_stand_on_two_lines_on_a_desktop(page: Page, small: Path) -> None:
    opened(page, small)
    top = {name: page.locator(f"#{name}").bounding_box()["y"] for name in ("search", "most-confidence", "opacity")}
    assert top["search"] == top["most-confidence"] < top["opacity"]
    clear, label = page.get_by_role("button", name="Clear", exact=True), page.get_by_text("Opacity", exact=True)
    assert abs(clear.bounding_box()["y"] - top["opacity"]) < 3
    assert label.bounding_box()["y"] < top["opacity"]
    assert abs(label.bounding_box()["x"] - page.locator("#opacity").bounding_box()["x"]) < 3


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


def test_hostile_rows_are_text(page: Page, small: Path) -> None:
    opened(page, small)
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


def test_the_content_security_policy_blocks_injected_scripts(browser: Browser, small: Path) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        opened(page, small)
        with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
            page.evaluate(
                "document.body.insertAdjacentHTML('afterbegin', '<b onclick=\"window.hit=1\" id=planted>here</b>')"
            )
            page.locator("#planted").click()
        assert page.evaluate("window.hit") is None


def test_failures_numbers_and_settings(page: Page, small: Path) -> None:
    opened(page, small, "#numbers")
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
def test_a_phone_shows_the_page_without_horizontal_scrolling(page: Page, small: Path, view: str) -> None:
    page.set_viewport_size(PHONE)
    opened(page, small, view)
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


def test_light_and_dark(page: Page, small: Path) -> None:
    def lightness(name: str) -> float:
        colour = page.evaluate(f"getComputedStyle(document.body).{name}")
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")) / 3

    opened(page, small)
    page.emulate_media(color_scheme="light")
    assert lightness("backgroundColor") > 220
    assert lightness("color") < 60
    page.emulate_media(color_scheme="dark")
    assert lightness("backgroundColor") < 40
    assert lightness("color") > 200
