"""The choice of `--batch-size auto` and of `--dtype auto`.

On a GPU the batch grows until images/s stop rising or memory is short. That takes seconds, so the choice is kept in the
user's cache folder for each kind of GPU, model and method.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from diffseg.model.layout import CheckpointError
from diffseg.settings import Dtype
from pipeline.digest import short_digest
from pipeline.executor.protocol import Job
from pipeline.output.manifest import Manifest, read_manifest
from pipeline.settings import LabelSettings
from pipeline.weights import cache_folder

if TYPE_CHECKING:
    from diffseg import Segmenter
    from diffseg.images.canvas import ModelInput

log = logging.getLogger(__name__)

LARGEST = 64
"""Largest batch that is tried."""
WORTHWHILE = 1.05
"""Images/s of the double batch, relative to the batch before, that make it worth its memory."""
BATCHES = 3
"""Batches that are measured at each size, after one that is not."""


def fastest_batch_size(
    images_per_second: Callable[[int], float], is_out_of_memory: Callable[[BaseException], bool]
) -> tuple[int, dict[int, float]]:
    """Double the batch while that is worthwhile and fits in memory.

    Args:
        images_per_second: Measures a batch size.
        is_out_of_memory: Whether an error of that function means that memory is short. Others are raised.

    Returns:
        The batch size, and the images/s of each size that was measured.
    """
    rates: dict[int, float] = {}
    best = size = 1
    while size <= LARGEST:
        try:
            rates[size] = images_per_second(size)
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            break
        if rates[size] < WORTHWHILE * rates[best] and size > 1:
            break
        best, size = size, 2 * size
    return best, rates


def choose_batch_size(segmenter: Segmenter, device: str, depends_on: Mapping[str, Any]) -> int:
    """Return the batch size for a segmenter: on a GPU the one in the cache folder, else a measured one; elsewhere 1.

    Args:
        segmenter: The model on its device. Its batch size is changed by the measurement.
        device: The device.
        depends_on: What the choice depends on beside the kind of GPU and the version of torch, as JSON values.
    """
    import torch

    from diffseg.devices import out_of_memory, release_device_memory

    if not device.startswith("cuda"):
        return 1
    gpu = torch.cuda.get_device_properties(device)
    description = {**depends_on, "gpu": gpu.name, "memory": gpu.total_memory, "torch": torch.__version__}
    try:
        path = cache_folder() / "batch-sizes" / f"{short_digest(json.dumps(description, sort_keys=True))}.json"
    except CheckpointError:  # there is no folder, so each worker measures for itself
        path = None
    if (known := _read(path)) is not None:
        return known
    with torch.compiler.set_stance("force_eager"):  # a model would be compiled for each size
        size, rates = fastest_batch_size(lambda size: measure_rate(segmenter, size), out_of_memory)
    release_device_memory(device)
    shown = {str(tried): round(rate, 2) for tried, rate in rates.items()}
    log.info("batch size %d; images/s by batch size: %s", size, shown)
    _write(path, {"batch_size": size, "images_per_second": shown, "for": description})
    return size


def measure_rate(segmenter: Segmenter, size: int, *, now: Callable[[], float] = time.perf_counter) -> float:
    """Return images/s with batches of a size. As in a run, a batch is sent before the results of the last are awaited.

    Args:
        segmenter: The model on its device; it keeps the batch size.
        size: Images in each batch.
        now: A clock, in seconds.
    """
    segmenter.batch_size = size
    inputs = run_blank_batch(segmenter)
    started, before = now(), segmenter.launch(inputs)
    for _ in range(BATCHES - 1):
        pending = segmenter.launch(inputs)
        before.results()
        before = pending
    before.results()
    return BATCHES * size / (now() - started)


def run_blank_batch(segmenter: Segmenter) -> list[ModelInput]:
    """Label one batch of images of noise, by which kernels and a compiled model become ready; return the batch."""
    import numpy as np

    from diffseg.model.text import prompt_of_names

    side = segmenter.resolution
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    prompt = prompt_of_names(["object"]) if segmenter.needs & {"cross_attention", "clip"} else None
    inputs = [segmenter.prepare(image, prompt)] * segmenter.batch_size
    segmenter.launch(inputs).results()
    return inputs


def _read(path: Path | None) -> int | None:
    """Return the batch size in a file that `_write` wrote; None if there is no such file, or something else in it."""
    if path is None:
        return None
    try:
        size = json.loads(path.read_bytes())["batch_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return size if isinstance(size, int) and 1 <= size <= LARGEST else None


def _write(path: Path | None, record: Mapping[str, Any]) -> None:
    """Write a file atomically, because several workers of a node may do so at once."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "w") as file:
            json.dump(record, file, indent=1, sort_keys=True)
        os.replace(name, path)
    except OSError as error:
        log.info("the batch size is not kept for other workers: %s", error)


def with_dtype_of_run(settings: LabelSettings, run: Manifest | None) -> LabelSettings:
    """Replace the dtype "auto" by that of a run which exists already, if there is one."""
    dtype: Any = None if run is None else run.settings.get("dtype", "float32")
    return _with_dtype(settings, dtype) if dtype in get_args(Dtype) else settings


def with_common_dtype(jobs: Sequence[Job]) -> Sequence[Job]:
    """Replace the dtype "auto" by float32 if only some of the worker pools have GPUs, because a run has one type."""
    if len({job.worker.device for job in jobs}) == 1:
        return jobs
    return [replace(job, settings=_with_dtype(job.settings, "float32")) for job in jobs]


def with_dtype_of_worker(job: Job) -> LabelSettings:
    """Return the settings for a worker that is starting, without the dtype "auto".

    On a GPU the type is that of run.json, which the first worker of the run has written, unless this is the first one.
    Workers that start at the same moment on different kinds of GPU may choose differently; `RunRecorder` refuses this.
    """
    if job.settings.dtype != "auto" or not job.worker.device.startswith("cuda"):
        return _with_dtype(job.settings, "float32")
    return _with_dtype(with_dtype_of_run(job.settings, read_manifest(job.out)), fastest_cuda_dtype())


def _with_dtype(settings: LabelSettings, dtype: Dtype) -> LabelSettings:
    """Replace the dtype "auto"."""
    return replace(settings, dtype=dtype) if settings.dtype == "auto" else settings


def fastest_cuda_dtype() -> Dtype:
    """Return bfloat16 if this process's GPU has it, else float16."""
    import torch

    # With emulation, GPUs would count that have no instructions for bfloat16 (before compute capability 8.0).
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
