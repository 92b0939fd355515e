"""The worker itself: what it does where memory does not suffice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import jobs.shard
from diffseg import Segmenter
from diffseg.settings import settings_of
from pipeline.executor.protocol import Job
from pipeline.executor.worker import LabelWorker
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
    """At 8 images in a batch."""
    settings = LabelSettings(method=settings_of(resolution=64))
    source, out = Storage(url="."), Storage(url=str(tmp_path / "out"))
    job = Job(settings=settings, worker=WorkerSettings(device="cpu", batch_size=8), source=source, out=out)
    worker = LabelWorker()
    worker.load(job)
    return worker


def needs_memory_above(batch: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let larger batches ask torch for more than there is; the sizes of the batches that were tried, as they come."""
    tried: list[int] = []
    launch = Segmenter.launch

    def greedy(self: Segmenter, *arguments: Any) -> Any:
        tried.append(self.batch_size)
        if self.batch_size > batch:
            torch.empty(MORE_THAN_ANY_MACHINE_HAS)
        return launch(self, *arguments)

    monkeypatch.setattr(Segmenter, "launch", greedy)
    return tried


def test_a_batch_that_memory_cannot_hold_is_halved_and_stays_so(
    worker: LabelWorker, shards: list[Shard], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = needs_memory_above(3, monkeypatch)
    first, second = (worker.label(shard, 1) for shard in shards)
    assert tried == [8, 4, *[2] * 10]
    assert first.counts == second.counts == {"ok": 10}
    assert (first.batch_size, second.batch_size) == (2, 2)
    assert caplog.text.count("out of memory; from now on") == 2


def test_an_image_that_memory_cannot_hold_by_itself_is_an_error(
    worker: LabelWorker, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = needs_memory_above(0, monkeypatch)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        worker.label(shards[0], 1)
    assert tried == [8, 4, 2, 1]


def test_an_error_of_another_kind_halves_nothing(
    worker: LabelWorker, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Segmenter, "launch", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        worker.label(shards[0], 1)
    assert worker.segmenter.batch_size == 8
