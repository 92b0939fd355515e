"""Sources as people have them: what is left out is said, OUT is never a source, and several sources make one run."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blank_worker import all_rows, blank_run, keys_of
from changing_source import png, write_images, write_tar

import jobs.status
from jobs.label import parse
from pipeline.readers.parquet_columns import no_image_message
from pipeline.readers.sources import join_sources
from pipeline.storage import SourceError


def write_parquet(path: Path, **columns: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def statuses(out: Path) -> list[tuple[str, str]]:
    return [(row["key"], row["status"]) for row in all_rows(out)]


def test_what_is_left_out_is_in_the_summary_in_run_json_and_in_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_images(source, "a.png")
    (source / "b.zip").write_bytes(b"")
    (source / "c.png").symlink_to("/nowhere/c.png")
    left_out = {"broken link": {"count": 1, "examples": ["c.png"]}, "zip": {"count": 1, "examples": ["b.zip"]}}
    assert blank_run(source, out).left_out == left_out
    assert json.loads((out / "run.json").read_text())["left_out"] == left_out
    assert jobs.status.main([str(out)]) == 0
    assert "left out: 1 zip (b.zip): unpack it" in capsys.readouterr().out
    (source / "b.zip").unlink()
    blank_run(source, out)  # with nothing to label
    assert jobs.status.main([str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == {"broken link": left_out["broken link"]}


def test_strict_refuses_before_anything_is_written(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    write_images(source, "a.png")
    (source / ".DS_Store").write_bytes(b"")
    assert blank_run(source, tmp_path / "first", strict=True).shards == 1
    (source / "b.heif.zip").write_bytes(b"")
    with pytest.raises(SourceError, match=r"--strict refuses.*1 zip \(b\.heif\.zip\)"):
        blank_run(source, out, strict=True)
    assert not out.exists()
    assert blank_run(f"{source}/*.png", out, strict=True).shards == 1


@pytest.mark.parametrize("kind", ["images", "parquet", "tar"])
@pytest.mark.parametrize("through", ["path", "link"])
def test_an_output_inside_the_source_is_no_source(tmp_path: Path, kind: str, through: str) -> None:
    source = tmp_path / "in"
    if kind == "images":
        write_images(source, "a.png", "b.png")
    elif kind == "tar":
        write_tar(source / "a.tar", "xy")
    else:
        write_parquet(source / "a.parquet", image=[png(1), png(2)])
    out = source / "out"
    if through == "link":
        (tmp_path / "real").mkdir()
        out.symlink_to(tmp_path / "real")
    settings = {"format": "parquet,webdataset", "include_image": True}
    first = blank_run(source, out, label=settings)
    again = blank_run(source, out, label=settings)
    assert again.done_before == again.shards == first.shards
    assert len(all_rows(out)) == 2
    other = source / "another"
    blank_run(source, other)
    assert len(all_rows(other)) == 2


def test_a_source_inside_the_output_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "out" / "in", "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "out" / "in")
    for source in ("out/in", "link", "out", "out/in/*.png"):
        with pytest.raises(SourceError, match="to which this command writes"):
            blank_run(tmp_path / source, tmp_path / "out")
    with pytest.raises(SourceError, match="to which this command writes"):
        blank_run(tmp_path / "link", tmp_path / "out" / "in")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["a.png", "in"]


def test_several_sources_and_a_list_make_one_run(tmp_path: Path) -> None:
    for folder in "ab":
        write_images(tmp_path / folder, "1.png", "2.png", seed=ord(folder))
    sources = join_sources([str(tmp_path / "a"), f"{tmp_path}/b/1.png"])
    blank_run(sources, tmp_path / "out")
    again = blank_run(sources, tmp_path / "out")
    assert again.done_before == again.shards
    expected = [f"{tmp_path}/a/1.png"[1:], f"{tmp_path}/a/2.png"[1:], f"{tmp_path}/b/1.png"[1:]]
    assert keys_of(all_rows(tmp_path / "out")) == expected
    (tmp_path / "list.txt").write_text("a\nb/1.png\n")
    blank_run(tmp_path / "list.txt", tmp_path / "out2")
    assert keys_of(all_rows(tmp_path / "out2")) == expected


@pytest.mark.parametrize(
    ("words", "source", "out"),
    [
        ("a b", "a", "b"),
        ("a --no-ray b", "a", "b"),
        ("--tau 0.5 a b c --no-ray", "a\nb", "c"),
        ("a b --tau 0.5 c d", "a\nb\nc", "d"),
    ],
)
def test_the_last_place_on_the_command_line_is_the_output(words: str, source: str, out: str) -> None:
    command = parse(words.split())
    assert (command.source, command.out) == (source, out)


def test_an_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["a", "b", "c", "--no-such-flag"])
    assert "--no-such-flag" in capsys.readouterr().err


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_a_key_column_that_does_not_tell_rows_apart_is_not_used(tmp_path: Path) -> None:
    images = pa.array([{"bytes": png(n), "path": f"{n}.png"} for n in range(3)], STRUCT)
    write_parquet(tmp_path / "in" / "paths.parquet", image=images, id=[7, 7, 7])
    write_parquet(tmp_path / "in" / "rows.parquet", image=[png(n) for n in range(3)], id=[7, 8, 7])
    same = pa.array([{"bytes": png(n), "path": "x.png"} for n in range(2)], STRUCT)
    write_parquet(tmp_path / "in" / "same.parquet", image=same)
    summary = blank_run(tmp_path / "in", tmp_path / "out")
    assert [key for key, status in statuses(tmp_path / "out") if status == "ok"] == [
        *("0.png", "1.png", "2.png", "00000000", "00000001", "00000002", "00000000", "00000001"),
    ]
    assert all(json.loads(row["meta"] or "{}").get("id", 7) in (7, 8) for row in all_rows(tmp_path / "out"))
    assert "'id' does not tell rows apart (row 1 repeats row 0), so the keys are the paths" in summary.notes["paths"]
    assert "(row 2 repeats row 0), so the keys are the numbers of the rows" in summary.notes["rows"]
    assert "the paths of the images do not tell rows apart" in summary.notes["same"]


def test_the_key_column_can_be_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "in" / "a.parquet", image=[png(1), png(2)], id=[7, 7], name=["x", "y"])
    summary = blank_run(tmp_path / "in", tmp_path / "out", label={"key_field": "name"})
    assert [key for key, _ in statuses(tmp_path / "out")] == ["x", "y"]
    assert summary.notes == {}
    summary = blank_run(tmp_path / "in", tmp_path / "wrong", label={"key_field": "nam"})
    assert "--key-field" in summary.failed["a"]
    write_images(tmp_path / "images", "a.png")
    with pytest.raises(SourceError, match="--key-field names a column of Parquet files"):
        blank_run(tmp_path / "images", tmp_path / "out2", label={"key_field": "name"})


def test_a_repetition_in_a_later_row_group_changes_all_keys(tmp_path: Path) -> None:
    table = pa.table({"image": [png(n) for n in range(4)], "id": [1, 2, 3, 1]})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=1)
    blank_run(tmp_path / "in", tmp_path / "out")
    assert statuses(tmp_path / "out") == [(f"{n:08d}", "ok") for n in range(4)]


@pytest.mark.parametrize("kind", ["lists", "base64"])
def test_the_advice_for_columns_that_are_no_images_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import base64

    source = tmp_path / "in"
    if kind == "lists":
        write_parquet(source / "a.parquet", images=[[png(1)], [png(2), png(3)]], caption=["c", "d"])
    else:
        write_parquet(source / "a.parquet", image=[base64.b64encode(png(n)).decode() for n in (1, 2, 3)])
    with pytest.raises(SourceError, match="duckdb -c") as caught:
        blank_run(source, tmp_path / "out")
    command = str(caught.value).partition('duckdb -c "')[2].rpartition('"')[0].replace('\\"', '"')
    monkeypatch.chdir(source)
    Path("images").mkdir()
    duckdb.sql(command)
    blank_run(source / "images", tmp_path / "out")
    assert [status for _, status in statuses(tmp_path / "out")] == ["ok"] * 3
    assert "-c" in no_image_message(pq.read_schema(source / "a.parquet"), "a.parquet")
