"""The page of a run: what is written, in what sizes, and that nothing of a row is more than text in it."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_runs import SECONDS_A_SHARD, failed, labelled, write_rows

import jobs.report
from diffseg import IGNORE
from diffseg.drawing.overlay import class_colour, palette
from pipeline.output.commit import Commit
from pipeline.report.part import TILES_A_FILE
from pipeline.report.throughput import throughput

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(1)">&amp;\u2028\u202e.png'
STRIPES = np.repeat(np.arange(3, dtype=np.uint16), 20)[None].repeat(40, 0)  # 40 x 60 pixels


def report(out: Path | str, *flags: str) -> int:
    return jobs.report.main([str(out), "--processes", "1", *flags])


def data_of(out: Path) -> dict[str, Any]:
    """What the data files hand over, by name."""
    found = {}
    for path in out.glob("report/data/*/*.js"):
        match = re.fullmatch(r'reportData\("([a-z0-9-]+)",(.*)\)\n', path.read_text(), re.DOTALL)
        if match:
            found[match[1]] = json.loads(match[2])
    return found


class Reader(HTMLParser):
    """Collects what a browser would take for elements, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = "".join(self.words)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of 60 rows, two of them failed, with names on some segments; the page is written."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "in").mkdir()
    rows = []
    for number in range(58):
        key = f"{number:03d}.png"
        Image.fromarray(np.full((40, 60, 3), 4 * number, np.uint8)).save(folder / "in" / key)
        labels = STRIPES.copy()
        labels[:5] = IGNORE if number == 0 else labels[:5]
        rows.append(labelled(key, labels, {0: "sky", 2: HOSTILE} if number < 10 else None, number / 58))
    rows += [failed(HOSTILE, "undecodable", HOSTILE), failed("b.png", "too_large", "has 2³² pixels")]
    write_rows(str(folder / "out"), rows, per_shard=30, source=str(folder / "in"), failures=[HOSTILE])
    assert report(folder / "out") == 0
    return folder / "out"


def test_every_row_is_in_the_list_and_has_its_pictures(out: Path) -> None:
    data = data_of(out)
    run, rows = data["run"], data["rows-0"]
    assert run["rows"] == len(rows) == 60
    assert run["shards"] == ["images-000000", "images-000001"]
    assert [row[0] for row in rows[:3]] == ["000.png", "001.png", "002.png"]
    assert [(run["statuses"][row[3]], row[4]) for row in rows[58:]] == [
        ("undecodable", HOSTILE),
        ("too_large", "has 2³² pixels"),
    ]
    for number, (_, part, index, _, _, segments, confidence, tile, names) in enumerate(rows[:58]):
        assert (part, index, segments) == (number // 30, number % 30, 3)
        assert confidence == pytest.approx(number / 58, abs=1e-4)
        assert [run["names"][name][0] for name in names] == (sorted(["sky", HOSTILE]) if number < 10 else [])
        picture = data[f"tiles-{part}-{tile // TILES_A_FILE}"][tile % TILES_A_FILE]
        photograph = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["photograph"]))))
        np.testing.assert_allclose(photograph, 4 * number, atol=2)


def test_segments_have_the_colour_of_their_name_or_number(out: Path) -> None:
    tiles = data_of(out)["tiles-0-0"]
    for tile, colours in (
        (tiles[0], [class_colour("sky"), palette(3)[1], class_colour(HOSTILE)]),
        (tiles[12], palette(3)),
    ):
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(tile["mask"]))))
        assert mask.shape == (40, 60, 4)
        for label, colour in enumerate(colours):
            np.testing.assert_array_equal(mask[20, 20 * label + 10], [*colour, 255])
            told = next(segment for segment in tile["segments"] if segment[0] == label)
            assert told[5] == "#{:02x}{:02x}{:02x}".format(*colour)
    top = np.asarray(Image.open(io.BytesIO(base64.b64decode(tiles[0]["mask"]))))[:4, :, 3]
    assert not top.any()  # what no segment has is transparent


def test_files_are_bounded_however_many_rows_there_are(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 900)).astype(np.uint16)
    long = labelled("k" * 100_000, noise)
    write_rows(
        str(tmp_path), [long] * 30 + [failed("f", "undecodable", "e" * 100_000)] * 50, per_shard=40, source="gone"
    )
    assert report(tmp_path) == 0
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "report").rglob("*") if path.is_file()}
    assert sum(name.startswith("tiles-") for name in sizes) == 2
    assert max(size for name, size in sizes.items() if name.startswith("tiles-")) < TILES_A_FILE * 300_000
    assert sizes["rows-0.js"] < 80 * 2000
    assert sizes["index.html"] < 200_000


def test_keys_errors_and_names_are_text(out: Path) -> None:
    html = (out / "report/index.html").read_text("utf-8")
    page = Reader(html)
    assert HOSTILE in page.text
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert [set(attributes) for attributes in scripts] == [{"src"}] * 5
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert not any(tag == "img" for tag, _ in page.elements)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv"))
    assert "default-src 'none'" in str(policy)
    assert "unsafe" not in str(policy)
    for path in out.glob("report/data/*/r*.js"):
        text = path.read_bytes()
        assert text.isascii()
    assert "http" not in re.sub(r"http-equiv", "", html)  # nothing is asked for elsewhere


def test_the_page_tells_failures_speed_and_settings(out: Path) -> None:
    text = Reader((out / "report/index.html").read_text("utf-8")).text
    for words in ("undecodable", "has 2³² pixels", "images-000002", "samples_per_shard", "0123456789abcdef", "unet"):
        assert words in text
    assert "Shards that failed: 1; not done yet: 0" in text


def test_without_photographs_the_segments_are_shown_and_it_is_said(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(out, "--images", str(out.parent / "nowhere"), "--json") == 0
    assert "nowhere" in json.loads(capsys.readouterr().out)["photographs"]
    tile = data_of(out)["tiles-0-0"][0]
    assert tile["photograph"] is None
    assert tile["mask"]
    assert "without their photographs" in (out / "report/index.html").read_text("utf-8")
    assert report(out) == 0
    assert data_of(out)["tiles-0-0"][0]["photograph"]
    assert len({path.parent for path in out.glob("report/data/*/*")}) == 1, "the data of the page before stay"


def test_of_many_rows_those_of_some_shards_are_shown_and_all_are_counted(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(out, "--rows", "30", "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"ok": 58, "undecodable": 1, "too_large": 1}
    assert data_of(out)["run"]["rows"] == 30
    assert "30 of 60 rows" in Reader((out / "report/index.html").read_text("utf-8")).text
    assert report(out, "--rows", "0") == 2
    assert report(out) == 0


def test_a_run_that_has_done_nothing_has_a_page(tmp_path: Path) -> None:
    write_rows(str(tmp_path), [], per_shard=1, source="gone")
    assert report(tmp_path) == 0
    assert report(tmp_path / "no-run") == 2


def test_throughput_leaves_pauses_out() -> None:
    def record(start: float, rows: int) -> Commit:
        times = {"started": 1000 + start, "finished": 1000 + start + SECONDS_A_SHARD}
        return Commit(shard="s", state="done", fingerprint="", attempt=1, rows=rows, **times)

    # Two at a time, a night without work, and one.
    found = throughput([record(0, 60), record(0, 30), record(40_000, 30)])
    assert found is not None
    assert found.seconds == 2 * SECONDS_A_SHARD
    assert found.images == 120
    np.testing.assert_allclose(found.rates, [3.0] * 30 + [1.0] * 30, rtol=1e-6)
    assert found.pauses == [SECONDS_A_SHARD]
    assert throughput([]) is None
