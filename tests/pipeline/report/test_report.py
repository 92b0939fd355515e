"""The report page of a run: its contents, the sizes of its files, and the escaping of text from rows."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_runs import shards_of_keys
from PIL import Image
from report_runs import SECONDS_PER_SHARD, failed, labelled, write_rows

import jobs.report
from diffseg import IGNORE
from diffseg.drawing.overlay import class_colour, hexadecimal
from diffseg.scoring.scores import IMAGE_SCORES, ImageScores
from pipeline.evaluation.pairing import RowLocation
from pipeline.evaluation.report import write_csv
from pipeline.evaluation.score import ScoredImage
from pipeline.output.commit import Commit
from pipeline.report import write
from pipeline.report.colours import oklab
from pipeline.report.html import _flatten
from pipeline.report.shard import TILES_PER_FILE
from pipeline.report.throughput import throughput

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(1)">&amp;\u2028\u202e.png'
STRIPES = np.repeat(np.arange(3, dtype=np.uint16), 20)[None].repeat(40, 0)  # 40 x 60 pixels


def report(out: Path | str, *flags: str) -> int:
    return jobs.report.main([str(out), "--processes", "1", *flags])


def data_of(out: Path) -> dict[str, Any]:
    """Return the contents of the data files by name."""
    data = {}
    for path in out.glob("report/data/*/*.js"):
        match = re.fullmatch(r'reportData\("([a-z0-9-]+)",(.*)\)\n', path.read_text(), re.DOTALL)
        if match:
            data[match[1]] = json.loads(match[2])
    return data


def lightness(colour: str) -> float:
    return float(oklab(tuple(bytes.fromhex(colour[1:])))[0])


def hue(colour: str) -> float:
    _, a, b = oklab(tuple(bytes.fromhex(colour[1:])))
    return math.atan2(b, a)


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


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of 60 rows, of which two failed and some have named segments; its page is written."""
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
    write_rows(str(folder / "out"), rows, per_shard=10**9, source=str(folder / "in"), failures=[HOSTILE])
    assert report(folder / "out") == 0
    return folder / "out"


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


def regions_of(picture: dict[str, Any]) -> np.ndarray:
    """Return the map of regions of a picture, uint8 [H, W]."""
    width, height = picture["pixels"]
    return np.frombuffer(zlib.decompress(base64.b64decode(picture["regions"])), np.uint8).reshape(height, width)


def test_pictures_hold_the_region_of_each_pixel(out: Path) -> None:
    data = data_of(out)
    for number, tile in enumerate(data["tiles-0-0"]):
        regions = regions_of(tile)
        assert tile["size"] == tile["pixels"] == [60, 40]
        assert not tile["full"]  # it would not be larger
        for region, (label, area, *_) in enumerate(tile["segments"], 1):
            np.testing.assert_array_equal(regions[5:, 20 * label : 20 * label + 20], region)
            assert area == (regions == region).sum()
        assert (regions[:5] == 0).all() == (number == 0)  # pixels in no segment


def test_names_have_one_colour_and_segments_that_touch_differ_in_lightness(out: Path) -> None:
    data = data_of(out)
    names = dict(data["run"]["names"])
    assert names.keys() == {"sky", HOSTILE}
    assert hue(names["sky"]) == pytest.approx(hue(hexadecimal(class_colour("sky"))), abs=0.05)
    named, unnamed = data["tiles-0-0"][1], data["tiles-0-0"][12]
    assert {segment[3]: segment[5] is None for segment in named["segments"]} == {
        "sky": True,
        HOSTILE: True,
        None: False,
    }
    first, second, third = (lightness(segment[5]) for segment in sorted(unnamed["segments"]))
    assert min(abs(first - second), abs(second - third)) > 0.1  # stripes: the first and the third do not touch


def test_full_size_pictures_are_stored_for_galleries_of_limited_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.repeat(np.arange(3, dtype=np.uint16), 200)[None].repeat(400, 0)
    (tmp_path / "in").mkdir()
    for number in range(3):
        Image.fromarray(np.full((400, 600, 3), 80 * number, np.uint8)).save(tmp_path / f"in/{number}.png")
    rows = [labelled(f"{number}.png", labels) for number in range(3)]
    write_rows(str(tmp_path / "out"), rows, per_shard=10, source=str(tmp_path / "in"))
    assert report(tmp_path / "out") == 0
    data = data_of(tmp_path / "out")
    assert [(tile["full"], tile["pixels"]) for tile in data["tiles-0-0"]] == [(True, [256, 171])] * 3
    for number in range(3):
        full = data[f"full-0-{number}"]
        np.testing.assert_array_equal(np.unique(regions_of(full), return_counts=True)[1], [80_000] * 3)
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(full["photograph"]))))
        assert image.shape == (400, 600, 3)
        np.testing.assert_allclose(image, 80 * number, atol=2)
    monkeypatch.setattr(write, "FULL_SIZE_ROWS", 2)
    assert report(tmp_path / "out", "--rows", "1000") == 0
    assert not any(name.startswith("full-") for name in data_of(tmp_path / "out"))
    assert report(tmp_path / "out", "--where", "stem != '1'") == 0
    assert {name for name in data_of(tmp_path / "out") if name.startswith("full-")} == {"full-0-0", "full-0-1"}


def test_scores_of_evaluations_are_shown_for_the_images_that_were_scored(tmp_path: Path) -> None:
    rows = [labelled(f"{number}.png", STRIPES) for number in range(4)]
    out = write_rows(str(tmp_path), rows, per_shard=10, source="gone")
    scores = {0: 0.25, 1: 0.75, 2: float("nan"), 3: 0.5}
    scored = [
        ScoredImage(
            location=RowLocation("images-000000", number),
            key=f"{number}.png" if number != 3 else "another.png",  # the row was another image when it was scored
            size=(40, 60),
            scores={
                method: ImageScores(
                    values=dict.fromkeys(IMAGE_SCORES, value), regions=3, segments=3, missed=0.0, table=None
                )
                for method in ("this run", "grid")
            },
        )
        for number, value in scores.items()
    ]
    write_csv(out.at(f"{out.url}/report/paper"), "images.csv", scored)
    out.write_bytes("report/damaged/images.csv", b"method,key\nthis run,\xff\n")
    assert report(tmp_path) == 0
    data = data_of(tmp_path)
    assert data["run"]["evaluations"] == ["paper"]
    assert [row[9] for row in data["rows-0"]] == [{"0": 0.25}, {"0": 0.75}, {}, {}]
    assert [list(tile["scores"]) for tile in data["tiles-0-0"]] == [["paper"]] * 3 + [[]]
    assert data["tiles-0-0"][1]["scores"]["paper"] == [0.75] * len(IMAGE_SCORES)
    assert data["tiles-0-0"][2]["scores"]["paper"] == [None] * len(IMAGE_SCORES)
    text = Reader((tmp_path / "report/index.html").read_text("utf-8")).text
    assert "Covering (paper)" in text
    assert "report/damaged/images.csv cannot be read" in text


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
