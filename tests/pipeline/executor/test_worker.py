"""A worker that runs out of memory continues with smaller batches."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import write_checkpoint

import jobs.shard
from diffseg import Segmenter
from diffseg.settings import settings_of
from pipeline.executor.protocol import Job
from pipeline.executor.worker import LabelWorker
from pipeline.output.manifest import Manifest, write_manifest
from pipeline.readers.find import find_shards
from pipeline.readers.samples import Shard
from pipeline.settings import LabelSettings, WorkerSettings
from pipeline.storage import Storage

MORE_THAN_ANY_MACHINE_HAS = 2**46


@pytest.fixture(scope="module")
def shards(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    folder = tmp_path_factory.mktemp("tars")
    assert jobs.shard.main([str(scene_folder), str(folder), "--samples-per-shard", "10"]) == 0
    return find_shards(str(folder), Storage(url="."), samples_per_shard=10)


@pytest.fixture
def worker(tmp_path: Path) -> LabelWorker:
    """A worker with 8 images in a batch."""
    settings = LabelSettings(method=settings_of(resolution=64))
    source, out = Storage(url="."), Storage(url=str(tmp_path / "out"))
    job = Job(settings=settings, worker=WorkerSettings(device="cpu", batch_size=8), source=source, out=out)
    worker = LabelWorker()
    report = worker.load(job)
    run = Manifest(
        source="in",
        settings=settings.plain(),
        model_sha256=report.model_sha256,
        resolved=report.resolved,
        environment=report.environment,
        fingerprint=report.fingerprint,
    )
    write_manifest(out, run)  # without which a worker takes OUT for that of another run
    return worker


def test_the_fingerprint_holds_the_size_that_sdxl_is_told_where_it_is_not_its_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "sdxl", "sdxl")

    def resolved(**settings: Any) -> Any:
        label = LabelSettings(**{"model": str(tmp_path / "sdxl"), "method": settings_of(tau=0.5), **settings})
        source, out = Storage(url="."), Storage(url=str(tmp_path / "out"))
        return (
            LabelWorker()
            .load(Job(settings=label, worker=WorkerSettings(device="cpu"), source=source, out=out))
            .resolved
        )

    assert resolved(method=settings_of(resolution=64))["conditioning"] == {"size": 64}
    assert "conditioning" not in resolved()
    assert "conditioning" not in resolved(model="tiny")


def test_the_fingerprint_of_cuts_differs_from_that_of_versions_that_cut_in_two(worker: LabelWorker) -> None:
    settings = dataclasses.replace(worker.job.settings, method=settings_of(resolution=64, method="ncut"))
    cutting = LabelWorker().load(dataclasses.replace(worker.job, settings=settings))
    assert cutting.resolved["ncut"] == "k-way"
    assert "ncut" not in worker.report.resolved


def run_out_of_memory_above(batch: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make larger batches request more memory than there is. The list that is returned collects all batch sizes."""
    batch_sizes: list[int] = []
    attention_of = Segmenter.attention_of

    def greedy(self: Segmenter, *arguments: Any) -> Any:
        batch_sizes.append(self.batch_size)
        if self.batch_size > batch:
            torch.empty(MORE_THAN_ANY_MACHINE_HAS)
        return attention_of(self, *arguments)

    monkeypatch.setattr(Segmenter, "attention_of", greedy)
    return batch_sizes


def test_the_batch_size_is_halved_for_good_when_memory_runs_out(
    worker: LabelWorker, shards: list[Shard], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    batch_sizes = run_out_of_memory_above(3, monkeypatch)
    first, second = (worker.label(shard, 1) for shard in shards)
    assert batch_sizes == [8, 4, *[2] * 10]
    assert first.counts == second.counts == {"ok": 10}
    assert (first.batch_size, second.batch_size) == (2, 2)
    assert caplog.text.count("out of memory; from now on") == 2


def test_a_single_image_that_does_not_fit_in_memory_is_an_error(
    worker: LabelWorker, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_sizes = run_out_of_memory_above(0, monkeypatch)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        worker.label(shards[0], 1)
    assert batch_sizes == [8, 4, 2, 1]


def test_another_error_leaves_the_batch_size_unchanged(
    worker: LabelWorker, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Segmenter, "attention_of", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        worker.label(shards[0], 1)
    assert worker.segmenter.batch_size == 8


@pytest.mark.parametrize("compile", [False, True])
def test_a_worker_reports_how_it_computes_and_has_compiled_its_model_once_it_is_ready(
    compile: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr("diffseg.model.backbone.compile_model", lambda vae, unet: compiled.append(unet))
    batch_sizes = run_out_of_memory_above(8, monkeypatch)
    settings = LabelSettings(method=settings_of(resolution=64))
    storage = Storage(url=str(tmp_path / "out"))
    job = Job(
        settings=settings,
        worker=WorkerSettings(device="cpu", batch_size=2, compile=compile),
        source=storage,
        out=storage,
    )
    report = LabelWorker().load(job)
    assert report.environment["attention"] == "blockwise"
    assert report.environment.get("compile", False) == compile
    assert (len(compiled), batch_sizes) == ((1, [2]) if compile else (0, []))
    assert 0 < report.startup_seconds < 600


def test_run_json_says_that_a_gpu_resizes_the_images(
    worker: LabelWorker, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "resizing" not in worker.report.environment
    initialise = Segmenter.__init__

    def as_on_a_gpu(self: Segmenter, *arguments: Any, **options: Any) -> None:
        initialise(self, *arguments, **options)
        self.resizes_on_device = True

    monkeypatch.setattr(Segmenter, "__init__", as_on_a_gpu)
    report = worker.load(worker.job)
    assert report.environment["resizing"] == "on the GPU"
    assert worker.label(shards[0], 1).counts == {"ok": 10}
