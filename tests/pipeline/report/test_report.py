"""The report page of a run: its contents, the sizes of its files, and the escaping of text from rows."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from labelled_runs import shards_of_keys
from PIL import Image
from report_pages import HOSTILE, STRIPES, data_of, regions_of, report
from report_runs import SECONDS_PER_SHARD, failed, labelled, write_rows

from pipeline.output.commit import Commit
from pipeline.report import write
from pipeline.report.html import _flatten
from pipeline.report.shard import TILES_PER_FILE
from pipeline.report.throughput import throughput


class Reader(HTMLParser):
    """Collects the elements that a browser would create, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.html = html
        self.feed(html)
        self.text = "".join(self.words)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_settings_of_the_method_have_the_names_of_the_command_line() -> None:
    settings = {"model": "tiny", "method": {"method": ["diffseg", "par"], "tau": 1.0}, "naming": {"names": ["cat"]}}
    assert list(_flatten(settings)) == [
        ("model", "tiny"),
        ("method", "diffseg, par"),
        ("tau", "1.0"),
        ("naming names", "cat"),
    ]


def test_every_row_is_in_the_list_and_has_its_pictures(out: Path) -> None:
    data = data_of(out)
    run, rows = data["run"], data["rows-0"]
    assert run["rows"] == len(rows) == 60
    assert run["shards"] == list(shards_of_keys([row[0] for row in rows[:58]], 10**9))
    assert [row[0] for row in rows[:3]] == ["000.png", "001.png", "002.png"]
    assert [(run["statuses"][row[3]], row[4]) for row in rows[58:]] == [
        ("undecodable", HOSTILE),
        ("too_large", "has 2³² pixels"),
    ]
    for number, (_, shard, index, _, _, segments, confidence, tile, names, _) in enumerate(rows[:58]):
        assert (shard, index, segments) == (0, number, 3)
        assert confidence == pytest.approx(number / 58, abs=1e-4)
        assert [run["names"][name][0] for name in names] == (sorted(["sky", HOSTILE]) if number < 10 else [])
        picture = data[f"tiles-{shard}-{tile // TILES_PER_FILE}"][tile % TILES_PER_FILE]
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["photograph"]))))
        np.testing.assert_allclose(image, 4 * number, atol=2)


def test_the_distribution_of_names(out: Path) -> None:
    page = Reader((out / "report/index.html").read_text("utf-8"))
    # 10 of 58 images have 20 of 60 columns each, but the first lacks 5 of 40 rows.
    share = 100 * (10 * 800 - 100) / (58 * 2400)
    assert f"sky 10 10 {share:.1f} %" in " ".join(
        re.sub(r"<[^>]*>", " ", page.html[page.html.index("Names<") :]).split()
    )


def test_the_size_of_files_is_bounded(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 900)).astype(np.uint16)
    large = labelled("k" * 100_000, noise)
    write_rows(
        str(tmp_path), [large] * 30 + [failed("f", "undecodable", "e" * 100_000)] * 50, per_shard=40, source="gone"
    )
    assert report(tmp_path) == 0
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "report").rglob("*") if path.is_file()}
    assert sum(name.startswith("tiles-") for name in sizes) == 2
    assert max(size for name, size in sizes.items() if name.startswith("tiles-")) < TILES_PER_FILE * 300_000
    assert sizes["rows-0.js"] < 80 * 2000
    assert sizes["index.html"] < 200_000


def test_keys_errors_and_names_are_escaped(out: Path) -> None:
    html = (out / "report/index.html").read_text("utf-8")
    page = Reader(html)
    assert HOSTILE in page.text
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert [set(attributes) for attributes in scripts] == [{"src"}] * len(write.SCRIPTS)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert not any(tag == "img" for tag, _ in page.elements)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv"))
    assert "default-src 'none'" in str(policy)
    assert "unsafe" not in str(policy)
    for path in out.glob("report/data/*/r*.js"):
        text = path.read_bytes()
        assert text.isascii()
    assert "http" not in re.sub(r"http-equiv", "", html)  # the page loads nothing from elsewhere


def test_the_page_shows_failures_speed_and_settings(out: Path) -> None:
    text = Reader((out / "report/index.html").read_text("utf-8")).text
    for words in ("undecodable", "has 2³² pixels", "failed-000001", "0123456789abcdef", "unet"):
        assert words in text
    first = text.index("Settings that differ from the defaults")
    assert first < text.index("samples_per_shard") < text.index("All values")
    assert "--samples-per-shard 1000000000" in text
    assert "Failed shards: 1; shards not done yet: 0" in text


def test_without_source_images_the_segments_are_shown_with_a_note(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(out, "--images", str(out.parent / "nowhere"), "--json") == 0
    assert "nowhere" in json.loads(capsys.readouterr().out)["photographs"]
    tile = data_of(out)["tiles-0-0"][0]
    assert tile["photograph"] is None
    assert regions_of(tile).any()
    assert "without their source images" in (out / "report/index.html").read_text("utf-8")
    assert report(out) == 0
    assert data_of(out)["tiles-0-0"][0]["photograph"]
    assert len({path.parent for path in out.glob("report/data/*/*")}) == 1, (
        "the data of the previous page are still there"
    )


def test_a_large_run_shows_rows_of_some_shards_and_counts_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [labelled(f"{number}.png", STRIPES) for number in range(58)]
    rows += [failed("a.png", "undecodable", ""), failed("b.png", "too_large", "")]
    write_rows(str(tmp_path), rows, per_shard=30, source="gone")
    assert report(tmp_path, "--rows", "30", "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"ok": 58, "undecodable": 1, "too_large": 1}
    assert data_of(tmp_path)["run"]["rows"] == 30
    (tmp_path / "keys.txt").write_text("".join(f"{number}.png\n" for number in range(20, 45)))
    assert report(tmp_path, "--rows", "30", "--keys", str(tmp_path / "keys.txt")) == 0
    assert data_of(tmp_path)["run"]["rows"] == 25  # of both shards
    assert report(tmp_path, "--rows", "30") == 0
    assert "30 of 60 rows" in Reader((tmp_path / "report/index.html").read_text("utf-8")).text
    assert report(tmp_path, "--rows", "0") == 2


def test_a_page_can_be_about_some_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [labelled(f"{number}.png", STRIPES, confidence=number / 10) for number in range(10)]
    write_rows(str(tmp_path), [*rows, failed("a.png", "undecodable", "")], per_shard=4, source="gone")
    assert report(tmp_path, "--where", "confidence < 0.35 and status == 'ok'", "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"ok": 4}
    assert data_of(tmp_path)["run"]["rows"] == 4
    text = Reader((tmp_path / "report/index.html").read_text("utf-8")).text
    assert "some rows only: confidence < 0.35 and status == 'ok'" in " ".join(text.split())
    (tmp_path / "keys.txt").write_text("3\n4.png\n")
    assert report(tmp_path, "--keys", str(tmp_path / "keys.txt"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"ok": 2}
    (tmp_path / "keys.txt").write_text("another run\n")
    assert report(tmp_path, "--keys", str(tmp_path / "keys.txt")) == 0
    assert "no row is selected" in capsys.readouterr().err


def test_a_run_without_done_shards_has_a_page(tmp_path: Path) -> None:
    write_rows(str(tmp_path), [], per_shard=1, source="gone")
    assert report(tmp_path) == 0
    assert report(tmp_path / "no-run") == 2


def test_throughput_excludes_pauses() -> None:
    def record(start: float, rows: int) -> Commit:
        times = {"started": 1000 + start, "finished": 1000 + start + SECONDS_PER_SHARD}
        return Commit(shard="s", state="done", fingerprint="", attempt=1, rows=rows, **times)

    # Two shards at the same time, a pause of 40,000 s, and one shard.
    result = throughput([record(0, 60), record(0, 30), record(40_000, 30)])
    assert result is not None
    assert result.seconds == 2 * SECONDS_PER_SHARD
    assert result.images == 120
    np.testing.assert_allclose(result.rates, [3.0] * 6 + [1.0] * 6, rtol=1e-6)
    assert result.pauses == [SECONDS_PER_SHARD]
    assert throughput([]) is None


def test_the_throughput_of_one_shard_is_a_sentence(tmp_path: Path) -> None:
    write_rows(str(tmp_path), [labelled("0.png", STRIPES)], per_shard=10, source="gone")
    assert report(tmp_path) == 0
    text = Reader((tmp_path / "report/index.html").read_text("utf-8")).text
    assert "images per second over the working time" not in text
    assert f"Throughput: {1 / SECONDS_PER_SHARD:.3g} images/s over {SECONDS_PER_SHARD:g} s" in text
