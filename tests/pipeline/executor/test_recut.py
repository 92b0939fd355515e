"""`recut_run`: new labels from levels, with the commit records, the resuming and the bytes of a labelling run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from labelled_runs import write_run

from diffseg.levels import Cut
from pipeline.errors import RunRefused
from pipeline.executor.recut import recut_run
from pipeline.executor.summary import RunSummary
from pipeline.output.manifest import require_manifest
from pipeline.output.reader import label_rows
from pipeline.output.records import read_run_commits
from pipeline.output.rows import SCHEMA
from pipeline.output.verify import verify_run
from pipeline.settings import RunSettings
from pipeline.storage import SourceError, Storage

LABELS = {
    f"{name}.png": np.repeat(np.arange(2 + number, dtype=np.uint16)[None], 6, axis=0).repeat(5, axis=1)
    for number, name in enumerate("abcdef")
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_run(tmp_path / "out", LABELS, levels=True)
    return tmp_path / "out"


def recut(out: Path | str, new: Path | str, cut: Cut, **run: object) -> RunSummary:
    settings = RunSettings(no_ray=True, **run)  # type: ignore[arg-type]
    return recut_run(str(out), str(new), cut, run=settings, format="parquet,webdataset")


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in ("labels", "webdataset")
        for path in sorted((folder / name).iterdir())
    }


def test_a_run_is_cut_again_with_commit_records_and_the_same_bytes_each_time(out: Path, tmp_path: Path) -> None:
    summary = recut(out, tmp_path / "new", Cut(segments=2))
    assert (summary.failed, summary.counts) == ({}, {"ok": 6})
    new = Storage(url=str(tmp_path / "new"))
    manifest = require_manifest(new)
    assert manifest.source == require_manifest(Storage(url=str(out))).source, "for commands that read the images"
    assert not any(verify_run(new, manifest).problems.values())
    shards = sorted(read_run_commits(new, manifest).done)
    rows = [row for shard in shards for row in label_rows(new, shard, SCHEMA.names)]
    assert sorted(row["key"] for row in rows) == sorted(LABELS)
    assert {row["n_segments"] for row in rows} == {2}
    recut(out, tmp_path / "again", Cut(segments=2))
    assert files_in(tmp_path / "again") == files_in(tmp_path / "new")


def test_the_level_of_the_run_gives_the_rows_of_the_run(out: Path, tmp_path: Path) -> None:
    recut(out, tmp_path / "new", Cut(tau=0.4))
    before, now = Storage(url=str(out)), Storage(url=str(tmp_path / "new"))
    done = [sorted(read_run_commits(storage, require_manifest(storage)).done) for storage in (before, now)]
    for first, second in zip(*done, strict=True):
        assert list(label_rows(before, first, SCHEMA.names)) == list(label_rows(now, second, SCHEMA.names))


def test_a_recut_that_is_killed_before_a_commit_continues_with_the_same_bytes(out: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    words = [str(new / "commits" / "*"), "2", "jobs.recut", str(out), str(new), "--segments", "2", "--no-ray"]
    command = [sys.executable, str(Path(__file__).parents[2] / "killed_at_rename.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    killed = subprocess.run([*command, "--format", "parquet,webdataset"], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    committed = {path: path.stat().st_mtime_ns for path in (new / "commits").iterdir() if path.suffix == ".json"}
    assert len(committed) == 1
    summary = recut(out, new, Cut(segments=2))
    assert summary.done_before == 1
    assert all(path.stat().st_mtime_ns == time for path, time in committed.items())
    recut(out, tmp_path / "whole", Cut(segments=2))
    assert files_in(new) == files_in(tmp_path / "whole")


def test_another_level_is_refused_in_a_folder_that_is_used(out: Path, tmp_path: Path) -> None:
    recut(out, tmp_path / "new", Cut(segments=2))
    with pytest.raises(RunRefused, match="recut"):
        recut(out, tmp_path / "new", Cut(segments=3))
    assert recut(out, tmp_path / "new", Cut(segments=3), overwrite=True).counts == {"ok": 6}


def test_shards_that_are_labelled_again_are_cut_again(out: Path, tmp_path: Path) -> None:
    recut(out, tmp_path / "new", Cut(segments=2))
    again = recut(out, tmp_path / "new", Cut(segments=2))
    assert (again.done_before, again.images) == (again.shards, 0)
    write_run(out, {**LABELS, "g.png": LABELS["a.png"]}, levels=True)
    more = recut(out, tmp_path / "new", Cut(segments=2))
    assert more.counts["ok"] == 7


def test_a_run_cannot_be_cut_into_itself_or_without_levels(out: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="another folder"):
        recut(out, out, Cut(stable=True))
    recut(out, tmp_path / "new", Cut(stable=True))
    with pytest.raises(SourceError, match="--levels"):
        recut(tmp_path / "new", tmp_path / "third", Cut(stable=True))


def test_stores_are_read_and_written_through_their_urls(out: Path, tmp_path: Path) -> None:
    store = Storage(url=f"memory://{tmp_path.name}")
    for path in out.rglob("*"):
        if path.is_file():
            store.write_bytes(str(path.relative_to(out)), path.read_bytes())
    assert recut(store.url, f"memory://{tmp_path.name}-new", Cut(segments=2)).counts == {"ok": 6}
    recut(out, tmp_path / "local", Cut(segments=2))
    new = Storage(url=f"memory://{tmp_path.name}-new")
    assert {path: new.read_bytes(path) for path in files_in(tmp_path / "local")} == files_in(tmp_path / "local")


@pytest.mark.usefixtures("local_ray")
@pytest.mark.usefixtures("local_ray")
def test_actors_of_ray_write_the_same_bytes(out: Path, tmp_path: Path) -> None:
    settings = RunSettings(workers=1)
    recut_run(str(out), str(tmp_path / "ray"), Cut(segments=2), run=settings, format="parquet,webdataset")
    recut(out, tmp_path / "new", Cut(segments=2))
    assert files_in(tmp_path / "ray") == files_in(tmp_path / "new")


@pytest.mark.parametrize(("below", "changed"), [(0.75, False), (0.8, True)])
def test_names_with_a_low_score_become_background(below: float, changed: bool, tmp_path: Path) -> None:
    """All names of the run have a score of .75."""
    names = {key: ("dog",) + ("cat",) * int(labels.max()) for key, labels in LABELS.items()}
    write_run(tmp_path / "out", LABELS, names=names, vocabulary=("dog", "cat"))
    recut_run(str(tmp_path / "out"), str(tmp_path / "new"), None, run=RunSettings(no_ray=True), background_below=below)
    out, new = (Storage(url=str(tmp_path / name)) for name in ("out", "new"))
    rows, changed_rows = (
        [
            row
            for shard in sorted(read_run_commits(at, require_manifest(at)).done)
            for row in label_rows(at, shard, SCHEMA.names)
        ]
        for at in (out, new)
    )
    for before, after in zip(rows, changed_rows, strict=True):
        if changed:
            assert {(segment["name"], segment["class_id"]) for segment in after["segments"]} == {("background", 0)}
            for segment, original in zip(after["segments"], before["segments"], strict=True):
                segment |= {"name": original["name"], "class_id": original["class_id"]}
        assert after == before


def test_a_run_without_names_has_no_threshold(out: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no names"):
        recut_run(str(out), str(tmp_path / "new"), None, run=RunSettings(no_ray=True), background_below=0.5)
