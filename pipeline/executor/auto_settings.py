"""The choice of `--batch-size auto` and of `--dtype auto`.

On a GPU the batch grows until images/s stop rising or memory is short. That takes seconds, so the choice is kept in the
user's cache folder for each kind of GPU, model and method.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
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
from pipeline.storage.atomic_write import write_atomically
from pipeline.weights import cache_folder

if TYPE_CHECKING:
    from diffseg.images.canvas import ModelInput
    from diffseg.pending import PendingBatch
    from pipeline.label import ImageSegmenter

log = logging.getLogger(__name__)

LARGEST = 64
"""Largest batch that is tried."""
WORTHWHILE = 1.05
"""How much faster a doubled batch must be, in images/s, to be worth its memory."""
BATCHES = 3
"""Batches that are measured at each size, after a first one that is not measured."""


def fastest_batch_size(
    images_per_second: Callable[[int], float], is_out_of_memory: Callable[[BaseException], bool]
) -> tuple[int, dict[int, float]]:
    """Double the batch while that is worthwhile and fits in memory.

    Args:
        images_per_second: Measures a batch size.
        is_out_of_memory: Returns True if an error of that function means that memory is short. Other errors are raised.

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


def choose_batch_size(segmenter: ImageSegmenter, device: str, depends_on: Mapping[str, Any]) -> int:
    """Return the batch size for a segmenter: 1 on a CPU; on a GPU the cached one, or a measured one, which is cached.

    Args:
        segmenter: The model on its device. Its batch size is changed by the measurement.
        device: The device.
        depends_on: What else the choice depends on, apart from the kind of GPU and the version of torch, as JSON.
    """
    import torch

    from diffseg.devices import out_of_memory, release_device_memory

    if not device.startswith("cuda"):
        return 1
    gpu = torch.cuda.get_device_properties(device)
    description = {**depends_on, "gpu": gpu.name, "memory": gpu.total_memory, "torch": torch.__version__}
    try:
        path = cache_folder() / "batch-sizes" / f"{short_digest(json.dumps(description, sort_keys=True))}.json"
    except CheckpointError:  # there is no cache folder, so each worker measures for itself
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


def measure_rate(segmenter: ImageSegmenter, size: int, *, now: Callable[[], float] = time.perf_counter) -> float:
    """Return images/s at a batch size. As in a run, a batch is sent before the results of the previous one are read.

    Args:
        segmenter: The model on its device; it keeps the batch size.
        size: Images in each batch.
        now: A clock, in seconds.
    """
    segmenter.batch_size = size
    inputs = run_blank_batch(segmenter)
    in_flight: deque[PendingBatch | None] = deque()
    started = now()
    for pending in segmenter.launch_each([inputs] * BATCHES):
        in_flight.append(pending)
        if len(in_flight) > 1:
            _wait(in_flight.popleft())
    while in_flight:
        _wait(in_flight.popleft())
    return BATCHES * size / (now() - started)


def run_blank_batch(segmenter: ImageSegmenter) -> list[ModelInput]:
    """Label one batch of noise images and return it. This compiles the kernels, and the model with --compile."""
    import numpy as np

    from diffseg.model.text import prompt_of_names

    side = segmenter.resolution
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    prompt = prompt_of_names(["object"]) if segmenter.needs & {"cross_attention", "clip"} else None
    inputs = [segmenter.prepare(image, prompt)] * segmenter.batch_size
    for pending in segmenter.launch_each([inputs]):
        _wait(pending)
    return inputs


def _wait(pending: PendingBatch | None) -> None:
    """Wait for the results of a batch."""
    assert pending is not None
    pending.results()


def _read(path: Path | None) -> int | None:
    """Return the batch size in a file that `_write` has written; None if the file is missing or holds anything else."""
    if path is None:
        return None
    try:
        size = json.loads(path.read_bytes())["batch_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return size if isinstance(size, int) and 1 <= size <= LARGEST else None


def _write(path: Path | None, record: Mapping[str, Any]) -> None:
    """Keep a batch size for other workers, several of which may do so at once."""
    if path is None:
        return
    try:
        write_atomically(str(path), json.dumps(record, indent=1, sort_keys=True).encode())
    except OSError as error:
        log.info("the batch size is not kept for other workers: %s", error)


def with_dtype_of_run(settings: LabelSettings, run: Manifest | None) -> LabelSettings:
    """Replace the dtype "auto" by that of the run in OUT, if OUT holds one."""
    dtype: Any = None if run is None else run.settings.get("dtype", "float32")
    return _with_dtype(settings, dtype) if dtype in get_args(Dtype) else settings


def with_common_dtype(jobs: Sequence[Job]) -> Sequence[Job]:
    """Replace the dtype "auto" by float32 if only some of the worker pools have GPUs, because a run has one type."""
    if len({job.worker.device for job in jobs}) == 1:
        return jobs
    return [replace(job, settings=_with_dtype(job.settings, "float32")) for job in jobs]


def with_dtype_of_worker(job: Job) -> LabelSettings:
    """Return the settings for a worker that is starting, without the dtype "auto".

    On a GPU the first worker of a run chooses the fastest type, which is then written to run.json, and the others take
    it from there. Workers that start at the same moment on different kinds of GPU may choose different types;
    `RunRecorder` refuses that.
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

    # With emulation, torch would also say yes for GPUs without instructions for it (compute capability below 8.0).
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
