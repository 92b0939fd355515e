"""Files that this program did not write stay where they are, whatever a user asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelled_runs import write_png

import jobs.export
import jobs.label
import jobs.report
import jobs.shard
import jobs.train
from pipeline.errors import RunRefused
from pipeline.output.ownership import clear_run, refuse_foreign_folder
from pipeline.storage import Storage

FAST = ("--no-ray", "--device", "cpu", "--resolution", "64")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2):
        write_png(folder / f"{number}.png", np.full((64, 80, 3), 90 * number, np.uint8))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_an_out_with_the_files_of_somebody_else_is_refused_and_stays_as_it_was(
    flags: tuple[str, ...], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "yolo"
    (out / "labels").mkdir(parents=True)
    (out / "labels" / "0.txt").write_text("0 0.5 0.5 1 1")
    before = contents(out)
    assert jobs.label.main([str(images), str(out), *FAST, *flags]) == 2
    message = capsys.readouterr().err.replace("\n", "")
    assert "holds labels, but no run.json" in message
    assert str(out / "diffseg") in message
    assert contents(out) == before


def test_overwrite_deletes_the_files_of_the_run_and_no_other(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert jobs.label.main([str(images), str(out), *FAST, "--format", "parquet,webdataset"]) == 0
    assert jobs.report.main([str(out), "--processes", "1"]) == 0
    own = contents(out)
    foreign = ("labels/0.txt", "labels/mine.parquet", "webdataset/mine.tar", "report/data/mine.js", "notes.txt")
    for path in (*foreign, "commits/mine.json"):
        (out / path).write_bytes(b"mine")
    orphan = next((out / "labels").glob("images-*.parquet"))
    (out / "labels" / "killed.parquet").write_bytes(orphan.read_bytes())
    (out / "webdataset" / "killed.tar").write_bytes(b"written without a record")
    clear_run(Storage(url=str(out)))
    assert sorted(contents(out)) == sorted((*foreign, "commits/mine.json"))
    assert "labels" in {path.split("/")[0] for path in own}


def test_a_clearing_that_was_killed_is_continued(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert jobs.label.main([str(images), str(out), *FAST]) == 0
    deleted: list[str] = []
    delete = Storage.delete

    def delete_two_files(self: Storage, path: str) -> None:
        if len(deleted) == 2:
            raise KeyboardInterrupt
        deleted.append(path)
        delete(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete", delete_two_files)
        with pytest.raises(KeyboardInterrupt):
            clear_run(Storage(url=str(out)))
    assert deleted[0].startswith("commits/")
    clear_run(Storage(url=str(out)))
    assert contents(out) == {}


def test_a_folder_is_free_if_it_is_empty_hidden_or_marked(tmp_path: Path) -> None:
    folder = Storage(url=str(tmp_path / "out"))
    refuse_foreign_folder(folder, "run.json")
    for path in (".DS_Store", ".git/config"):
        folder.write_bytes(path, b"")
    refuse_foreign_folder(folder, "run.json")
    folder.write_bytes("a/b/c.txt", b"")
    with pytest.raises(RunRefused, match=r"holds a, but no run\.json"):
        refuse_foreign_folder(folder, "run.json")
    folder.write_bytes("run.json", b"{}")
    refuse_foreign_folder(folder, "run.json")
    with pytest.raises(RunRefused, match=r"holds a, run\.json, so"):
        refuse_foreign_folder(folder, "")


@pytest.mark.parametrize("command", ["export", "train", "shard"])
def test_other_commands_refuse_such_a_folder_too(
    command: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, dest = tmp_path / "out", tmp_path / "dest"
    (dest / "deep" / "below").mkdir(parents=True)
    (dest / "deep" / "below" / "file.txt").write_text("mine")
    assert jobs.label.main([str(images), str(out), *FAST]) == 0
    line = {
        "export": (jobs.export.main, [str(out), str(dest), "--to", "cvat", "--processes", "1"]),
        "train": (jobs.train.main, [str(out), str(dest), "--no-ray", "--steps", "1", "--size", "32"]),
        "shard": (jobs.shard.main, [str(images), str(dest)]),
    }[command]
    capsys.readouterr()
    assert line[0](line[1]) == 2
    message = capsys.readouterr().err.replace("\n", "")
    assert ("holds files already (deep" if command == "shard" else "holds deep, but no") in message
    assert contents(dest) == {"deep/below/file.txt": b"mine"}
