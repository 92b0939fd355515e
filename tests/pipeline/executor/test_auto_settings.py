"""`--batch-size auto` and `--dtype auto`, with simulated GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diffseg import Segmenter
from diffseg.devices import out_of_memory
from pipeline.errors import RunRefused
from pipeline.executor import auto_settings
from pipeline.executor.auto_settings import (
    LARGEST,
    choose_batch_size,
    fastest_batch_size,
    measure_rate,
    with_common_dtype,
    with_dtype_of_run,
    with_dtype_of_worker,
)
from pipeline.executor.protocol import Job, WorkerReport
from pipeline.executor.recorder import RunRecorder
from pipeline.output.manifest import Manifest, write_manifest
from pipeline.settings import LabelSettings, WorkerSettings
from pipeline.storage import Storage

H200_MS = {1: 39.5, 2: 21.0, 4: 13.5, 8: 10.5, 16: 8.7, 32: 8.4, 64: 8.4}
"""Milliseconds per image by batch size. Those of 1, 8, 16 and 32 were measured on an H200 with SD 1.5."""
AUTO = LabelSettings(dtype="auto")


def rates_of(
    milliseconds: Mapping[int, float], *, memory_for: int = 10**6, error: BaseException | None = None
) -> tuple[Any, list[int]]:
    """Return a function that simulates a GPU with memory for some images, and the list of the sizes it measures."""
    asked: list[int] = []

    def images_per_second(size: int) -> float:
        asked.append(size)
        if size > memory_for:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return 1000 / milliseconds[size]

    return images_per_second, asked


def test_the_batch_grows_until_images_per_second_stop_rising() -> None:
    rate, asked = rates_of(H200_MS)
    size, rates = fastest_batch_size(rate, out_of_memory)
    assert (size, asked) == (16, [1, 2, 4, 8, 16, 32])
    assert rates[16] == pytest.approx(1000 / 8.7)


def test_the_batch_stays_small_where_a_larger_one_gains_nothing() -> None:
    assert fastest_batch_size(rates_of({1: 40, 2: 39})[0], out_of_memory)[0] == 1


def test_the_batch_grows_to_a_limit() -> None:
    rate, asked = rates_of({size: 1000 / size for size in (1, 2, 4, 8, 16, 32, 64)})
    assert fastest_batch_size(rate, out_of_memory)[0] == LARGEST == asked[-1]


@pytest.mark.parametrize("memory_for", [1, 5, 8])
def test_the_batch_grows_while_it_fits_in_memory(memory_for: int) -> None:
    rate, asked = rates_of(H200_MS, memory_for=memory_for)
    size, rates = fastest_batch_size(rate, out_of_memory)
    assert size == {1: 1, 5: 4, 8: 8}[memory_for]
    assert (asked[-1], max(rates)) == (2 * size, size)


def test_a_single_image_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        fastest_batch_size(rates_of(H200_MS, memory_for=0)[0], out_of_memory)


def test_another_error_than_a_lack_of_memory_is_raised() -> None:
    broken = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        fastest_batch_size(rates_of(H200_MS, memory_for=2, error=broken)[0], out_of_memory)


class Pending:
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def results(self) -> None:
        self.calls.append("results")


def test_the_rate_is_that_of_a_run_which_sends_a_batch_before_the_last_one_is_done() -> None:
    calls: list[str] = []

    def launch_each(batches: list[list[np.ndarray]]) -> Iterator[Pending]:
        for inputs in batches:
            calls.append(f"launch {len(inputs)}")
            yield Pending(calls)

    segmenter: Any = SimpleNamespace(
        resolution=64,
        needs={"self_attention"},
        batch_size=1,
        prepare=lambda image, prompt: image,
        launch_each=launch_each,
    )
    clock = iter([10.0, 13.0])
    assert measure_rate(segmenter, 4, now=lambda: next(clock)) == 3 * 4 / 3.0
    assert segmenter.batch_size == 4
    assert calls[:2] == ["launch 4", "results"], "the first batch is not measured"
    assert calls[2:] == ["launch 4", "launch 4", "results", "launch 4", "results", "results"]


def test_the_rate_of_a_model_can_be_measured() -> None:
    segmenter = Segmenter.from_pretrained("tiny", resolution=64)
    assert measure_rate(segmenter, 2) > 0
    assert segmenter.batch_size == 2


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU whose name the test can change. `asked` holds the sizes that were measured."""
    monkeypatch.setenv("DIFFSEG_CACHE", str(tmp_path / "cache"))
    gpu = SimpleNamespace(name="H200", total_memory=141 * 10**9)
    rate, gpu.asked = rates_of(H200_MS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(auto_settings, "measure_rate", lambda segmenter, size: rate(size))
    return gpu


def test_the_batch_size_is_measured_once_for_each_kind_of_gpu_and_model(gpu: SimpleNamespace, tmp_path: Path) -> None:
    segmenter: Any = None
    choices = [choose_batch_size(segmenter, "cuda", {"model": "m"}) for _ in range(3)]
    assert (choices, gpu.asked) == ([16] * 3, [1, 2, 4, 8, 16, 32])
    assert choose_batch_size(segmenter, "cuda", {"model": "n"}) == 16
    gpu.name = "L4"
    assert choose_batch_size(segmenter, "cuda", {"model": "m"}) == 16
    assert len(gpu.asked) == 18, "another model and another GPU were not measured"
    assert len(list((tmp_path / "cache" / "batch-sizes").iterdir())) == 3


@pytest.mark.parametrize("damage", ["", "[]", '{"batch_size": 0}', '{"batch_size": "16"}'])
def test_a_damaged_record_of_a_batch_size_is_replaced(damage: str, gpu: SimpleNamespace, tmp_path: Path) -> None:
    segmenter: Any = None
    choose_batch_size(segmenter, "cuda", {})
    (record,) = (tmp_path / "cache" / "batch-sizes").iterdir()
    written = record.read_text()
    record.write_text(damage)
    assert choose_batch_size(segmenter, "cuda", {}) == 16
    assert len(gpu.asked) == 12
    assert record.read_text() == written


@pytest.mark.parametrize("folder", ["a file", "~nobody-of-this-name"])
def test_a_cache_folder_that_cannot_be_written_costs_only_the_measurement(
    folder: str, gpu: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("DIFFSEG_CACHE", folder if folder.startswith("~") else str(tmp_path / folder))
    segmenter: Any = None
    assert [choose_batch_size(segmenter, "cuda", {}) for _ in range(2)] == [16, 16]
    assert len(gpu.asked) == 12


def test_on_a_cpu_the_batch_has_one_image_and_nothing_is_measured(gpu: SimpleNamespace) -> None:
    segmenter: Any = None
    assert choose_batch_size(segmenter, "cpu", {}) == 1
    assert gpu.asked == []


def job(device: Any, out: Path, settings: LabelSettings = AUTO) -> Job:
    storage = Storage(url=str(out))
    return Job(settings=settings, worker=WorkerSettings(device=device), source=storage, out=storage)


def manifest(dtype: str) -> Manifest:
    settings = LabelSettings().plain() | {"dtype": dtype}
    return Manifest(source="s", settings=settings, model_sha256="m", resolved={}, environment={}, fingerprint="f")


@pytest.mark.parametrize(("has_bfloat16", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_a_worker_on_a_gpu_takes_bfloat16_where_the_gpu_has_it(
    has_bfloat16: bool, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: has_bfloat16)
    assert with_dtype_of_worker(job("cuda", tmp_path)).dtype == dtype
    assert with_dtype_of_worker(job("cuda", tmp_path, LabelSettings())).dtype == "float32"
    write_manifest(Storage(url=str(tmp_path)), manifest("float16" if has_bfloat16 else "bfloat16"))
    assert with_dtype_of_worker(job("cuda", tmp_path)).dtype != dtype, "a late worker must follow the first one"


def test_a_worker_on_a_cpu_takes_float32(tmp_path: Path) -> None:
    assert with_dtype_of_worker(job("cpu", tmp_path)).dtype == "float32"


def test_a_run_that_resumes_keeps_its_dtype_unless_another_is_given() -> None:
    assert with_dtype_of_run(AUTO, manifest("bfloat16")).dtype == "bfloat16"
    assert with_dtype_of_run(LabelSettings(dtype="float16"), manifest("bfloat16")).dtype == "float16"
    assert with_dtype_of_run(AUTO, None).dtype == "auto"
    assert with_dtype_of_run(AUTO, manifest("nonsense")).dtype == "auto"


def test_pools_with_and_without_gpus_use_float32(tmp_path: Path) -> None:
    cpu, cuda = job("cpu", tmp_path), job("cuda", tmp_path)
    assert [one.settings.dtype for one in with_common_dtype([cpu, cuda])] == ["float32", "float32"]
    assert [one.settings.dtype for one in with_common_dtype([cuda, cuda])] == ["auto", "auto"]
    given = job("cuda", tmp_path, LabelSettings(dtype="bfloat16"))
    assert with_common_dtype([given])[0].settings.dtype == "bfloat16"


def test_workers_that_choose_different_types_are_refused_with_the_flag_that_helps() -> None:
    report = WorkerReport(
        model_sha256="m", resolved={}, fingerprint="g", environment={}, host="node-with-t4", dtype="float16"
    )
    recorder: Any = SimpleNamespace(manifest=manifest("bfloat16"))
    with pytest.raises(RunRefused, match=r"node-with-t4 .*\(float16\).*\(bfloat16\).*--dtype float16"):
        RunRecorder.worker_ready(recorder, report)
