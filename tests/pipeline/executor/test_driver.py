"""Runs of the driver on a real local Ray and in this process, on the embedded model at 64 px."""

from __future__ import annotations

import io
import json
import logging
import shutil
import tarfile
from pathlib import Path

import pytest
from rich.console import Console

from diffseg import CheckpointError
from diffseg.model.layout import TINY
from diffseg.settings import settings_of
from pipeline.errors import RunFailed, RunRefused
from pipeline.executor.driver import RunSummary, label_run
from pipeline.output.commit import read_commits
from pipeline.readers.pack import pack_images
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import SourceError, Storage

FAST = settings_of(resolution=64)


@pytest.fixture(scope="module")
def tars(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    pack_images(str(scene_folder), str(folder), samples_per_shard=4)
    return folder


def run(
    source: Path,
    out: Path,
    *,
    label: dict | None = None,
    worker: dict | None = None,
    console: Console | None = None,
    **settings: object,
) -> RunSummary:
    return label_run(
        str(source),
        str(out),
        settings=LabelSettings(**({"method": FAST} | (label or {}))),
        worker=WorkerSettings(**({"device": "cpu"} | (worker or {}))),  # type: ignore[arg-type]
        run=RunSettings(**({"workers": 2} | settings)),  # type: ignore[arg-type]
        console=console,
    )


def files(out: Path) -> dict[str, bytes]:
    """Return what must be the same however a run went: data files, run.json, and records without their times."""
    contents = {
        path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()
    }
    contents.pop("progress.json")
    for path in contents:
        if path.startswith("commits/"):
            record = json.loads(contents[path])
            for name in ("seconds", "started", "finished", "attempt", "worker"):
                record.pop(name)
            contents[path] = json.dumps(record, sort_keys=True).encode()
    return contents


def delete_record(out: Path, shard: str) -> None:
    """Delete the record of a done shard."""
    (record,) = (out / "commits").glob(f"{shard}.*.json")
    record.unlink()


@pytest.fixture(scope="module")
def uninterrupted(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    summary = run(tars, out, no_ray=True)
    assert (summary.shards, summary.done_before, summary.images, dict(summary.counts)) == (5, 0, 20, {"ok": 20})
    return out


@pytest.fixture(scope="module")
def on_ray(local_ray: None, tars: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunSummary, str]:
    """OUT of a run on one actor, its summary, and what it printed without a terminal."""
    out, text = tmp_path_factory.mktemp("on-ray"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.executor.progress_bar.LINE_SECONDS", 0.0)
        summary = run(tars, out, workers=1, console=Console(file=text))
    return out, summary, text.getvalue()


def test_ray_gives_the_bytes_of_one_process(on_ray: tuple[Path, RunSummary, str], uninterrupted: Path) -> None:
    """The same with two actors is in end_to_end/test_kill.py."""
    out, summary, _ = on_ray
    assert (summary.images, summary.failed) == (20, {})
    assert files(out) == files(uninterrupted)


@pytest.mark.parametrize("lost", ["commit", "data"])
def test_a_run_resumes_where_records_are_missing(lost: str, tars: Path, tmp_path: Path, uninterrupted: Path) -> None:
    run(tars, tmp_path, no_ray=True)
    delete_record(tmp_path, "000002")
    if lost == "data":
        (tmp_path / "labels" / "000002.parquet").write_bytes(b"half a fi")
    summary = run(tars, tmp_path, no_ray=True)
    assert (summary.done_before, summary.images) == (4, 4)
    assert files(tmp_path) == files(uninterrupted)


def test_a_finished_run_loads_no_model(tars: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffseg.model.checkpoint.load_checkpoint", lambda *a, **k: pytest.fail("a model was loaded"))
    summary = run(tars, uninterrupted, no_ray=True)
    assert (summary.done_before, summary.images, dict(summary.counts)) == (5, 0, {"ok": 20})


def test_other_settings_are_refused_and_change_nothing(tars: Path, uninterrupted: Path) -> None:
    before = files(uninterrupted)
    with pytest.raises(RunRefused, match="kmeans: False in OUT, True now"):
        run(tars, uninterrupted, no_ray=True, label={"method": settings_of(resolution=64, kmeans=True)})
    with pytest.raises(RunRefused, match="source"):
        run(tars / "000000.tar", uninterrupted, no_ray=True)
    assert files(uninterrupted) == before


def test_the_model_is_identified_by_its_files_and_not_by_its_name(tars: Path, tmp_path: Path) -> None:
    source, out = tars / "000000.tar", tmp_path / "out"
    run(source, out, no_ray=True)
    copy = tmp_path / "copy"
    shutil.copytree(TINY, copy)
    assert run(source, out, no_ray=True, label={"method": FAST, "model": str(copy)}).done_before == 1
    (copy / "unet" / "config.json").write_text((copy / "unet" / "config.json").read_text() + "\n")
    with pytest.raises(RunRefused, match="model_sha256"):
        run(source, out, no_ray=True, label={"method": FAST, "model": str(copy)})
    delete_record(out, "000000")
    with pytest.raises(RunRefused, match="model_sha256"):
        run(source, out, no_ray=True, label={"method": FAST, "model": str(copy)})


def test_overwrite_starts_over(tars: Path, tmp_path: Path) -> None:
    run(tars, tmp_path, no_ray=True)
    other = {"method": settings_of(resolution=64, tau=(0.1,) * 3)}
    summary = run(tars / "000001.tar", tmp_path, no_ray=True, label=other, overwrite=True)
    assert (summary.shards, summary.done_before) == (1, 0)
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["000001.parquet"]


def test_another_environment_is_logged(tars: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tars, tmp_path, no_ray=True)
    delete_record(tmp_path, "000000")
    with caplog.at_level(logging.WARNING):
        run(tars, tmp_path, no_ray=True, worker={"batch_size": 2})
    assert "batch_size: 1 before, 2 now" in caplog.text


def test_a_folder_that_grew_is_labelled_again_where_it_changed(scene_folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    images = sorted((scene_folder / "a").iterdir())
    for path in images[:6]:
        (source / path.name).write_bytes(path.read_bytes())
    run(source, out, no_ray=True, label={"samples_per_shard": 4})
    for path in images[6:9]:
        (source / path.name).write_bytes(path.read_bytes())
    summary = run(source, out, no_ray=True, label={"samples_per_shard": 4})
    assert summary.counts["ok"] == 9
    assert summary.images < 9, "groups that did not change are not labelled again"


def copy_with_a_broken_shard(tars: Path, folder: Path) -> Path:
    for path in tars.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.tar").write_bytes(b"this is no tar")
    return folder


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("no_ray", [True, False])
def test_a_bad_shard_is_recorded_after_three_attempts_and_labelled_once_it_is_repaired(
    no_ray: bool, tars: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    copy_with_a_broken_shard(tars, source)
    with caplog.at_level(logging.WARNING):
        summary = run(source, out, no_ray=no_ray, workers=1)
    assert list(summary.failed) == ["broken"]
    assert (summary.images, dict(summary.counts)) == (20, {"ok": 20})
    assert caplog.text.count("at shard broken failed") == 3
    record = read_commits(Storage(url=str(out)))["broken"]
    assert (record.state, record.attempt, record.files) == ("failed", 3, {})
    assert "broken.tar" in record.error
    with tarfile.open(source / "broken.tar", "w") as tar:
        member = tarfile.TarInfo("k.txt")
        tar.addfile(member, io.BytesIO())
    repaired = run(source, out, no_ray=True)
    assert (repaired.failed, repaired.done_before, repaired.counts["no_image"]) == ({}, 5, 1)


@pytest.mark.usefixtures("local_ray")
def test_a_run_without_resources_fails_with_a_message(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.executor.readiness.UNSCHEDULED_WARNING_SECONDS", 0.5)
    with pytest.raises(
        RunFailed, match=r"no nodes with room .* each requesting 1 CPU, 1 GPU\). The cluster has 4 CPU, 0 GPU"
    ):
        run(tars, tmp_path, worker={"device": "cuda"}, place_timeout=2.0)
    assert "no worker has been scheduled yet (0 of" in caplog.text
    assert not (tmp_path / "run.json").exists()


@pytest.mark.usefixtures("local_ray")
def test_a_missing_checkpoint_fails_at_once(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"no worker could load the model: CheckpointError: .*no-such-model"):
        run(tars, tmp_path, label={"model": str(tmp_path / "no-such-model")}, workers=1)
    with pytest.raises(CheckpointError, match="no-such-model"):
        run(tars, tmp_path, no_ray=True, label={"model": str(tmp_path / "no-such-model")})


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(SourceError, match="in"):
        run(tmp_path / "in", tmp_path / "out", no_ray=True)
    assert not (tmp_path / "out").exists()


def test_progress_is_printed_in_lines_without_a_terminal(on_ray: tuple[Path, RunSummary, str]) -> None:
    _, _, text = on_ray
    assert "5/5 shards · 20 images" in text
    assert "1 worker" in text
