"""Part pipeline: `diffseg label` beside a plain loop over the library and the bare pass, on the same images."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from diffseg import Segmenter
from diffseg.images.decode import decode_image
from diffseg.images.device_resize import squares_of
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import Checkpoint
from diffseg.settings import settings_of
from jobs.benchmarks.images import image_files
from jobs.benchmarks.measure import Comparison, cores, wait_for_devices
from jobs.benchmarks.models import dtype_name
from jobs.benchmarks.whole import bare_pass
from pipeline.label import label_shard
from pipeline.readers.find import find_shards
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import Storage

BATCHES = 24
TARS = 4


def measure_pipeline(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    batch_size: int,
    repetitions: int,
    with_actor: bool,
    batches: int = BATCHES,
) -> Comparison:
    """Label a folder of images in tars and in a loop, in turns, with one CPU thread for the model.

    The start of Ray and of the model counts for no variant, and neither does the writing of the tars.

    Variants:
        bare: The bare pass of as many images, whose squares are on the device already.
        loop: Batches of files through the library, which only makes label maps.
        label: What a worker of `diffseg label` does with tars: reading, PNG, Parquet and commit records included.
        label, one actor: The same in an actor of Ray, from the start of its first shard to the end of its last one.

    Args:
        checkpoint: The model.
        folder: The images. They are repeated if there are fewer than `batches` batches.
        batch_size: Images per batch.
        repetitions: The number of measured turns.
        with_actor: Whether to measure an actor too, on a CPU with a model that can be loaded by its name.
        batches: The number of batches at least.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    files = image_files(folder)
    files = [files[i % len(files)] for i in range(max(len(files), batches * batch_size))]
    segmenter = Segmenter(Backbone(checkpoint), settings_of(), batch_size=batch_size)
    squares = squares_of([segmenter.prepare(decode_image(path)) for path in files[:batch_size]], checkpoint.vae.device)
    with tempfile.TemporaryDirectory(prefix="diffseg-bench-") as tars:
        _write_tars(files, Path(tars))
        variants: dict[str, Callable[[], float]] = {
            "bare": lambda: _timed(lambda: _bare(checkpoint, segmenter.timestep, squares, len(files))),
            "loop": lambda: _timed(lambda: _loop(segmenter, files)),
            "label": lambda: _timed(lambda: _label(segmenter, Path(tars))),
        }
        if with_actor:
            variants["label, one actor"] = lambda: _actor(checkpoint, Path(tars), batch_size)
        variants["label"]()  # warms up all variants: it does what the others do, and more
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for repetition in range(repetitions):
            order = list(variants.items())
            for name, run in order if repetition % 2 == 0 else reversed(order):
                seconds[name].append(run())
    torch.set_num_threads(threads)
    model = f"{checkpoint.name}, {segmenter.resolution} px, {dtype_name(checkpoint)}"
    case = f"{len(files)} images, {model}, batch {batch_size}"
    return Comparison(part="pipeline", case=case, seconds=seconds, baseline="loop", per=len(files))


def _timed(run: Callable[[], object]) -> float:
    """Return the seconds of a call, with the work that it leaves to the GPU."""
    started = time.perf_counter()
    run()
    wait_for_devices()
    return time.perf_counter() - started


def _bare(checkpoint: Checkpoint, timestep: int, squares: torch.Tensor, images: int) -> None:
    for _ in range(-(-images // len(squares))):
        bare_pass(checkpoint, timestep, squares)


def _loop(segmenter: Segmenter, files: Sequence[Path]) -> None:
    for start in range(0, len(files), segmenter.batch_size):
        segmenter([*files[start : start + segmenter.batch_size]])


def _write_tars(files: Sequence[Path], folder: Path) -> None:
    """Write the files into `TARS` tars of equal size, under keys of their own."""
    for number in range(TARS):
        with tarfile.open(folder / f"{number:03}.tar", "w") as tar:
            for index in range(number, len(files), TARS):
                tar.add(files[index], arcname=f"{index:06}{files[index].suffix}")


def _label(segmenter: Segmenter, tars: Path) -> None:
    """Label and commit the tars as a worker does."""
    with tempfile.TemporaryDirectory(prefix="diffseg-bench-") as out:
        source = Storage(url=".")
        for shard in find_shards(str(tars), source, samples_per_shard=1):
            label_shard(
                shard,
                segmenter=segmenter,
                settings=LabelSettings(),
                metadata={"fingerprint": "bench"},
                out=Storage(url=out),
                source=source,
                threads=max(2, cores()),
            )


def _actor(checkpoint: Checkpoint, tars: Path, batch_size: int) -> float:
    """Return the seconds from the start of the first shard to the end of the last one in an actor."""
    from pipeline.executor.driver import label_run  # imported here, because Ray is not needed for the rest

    with tempfile.TemporaryDirectory(prefix="diffseg-bench-") as out:
        label_run(
            str(tars),
            out,
            settings=LabelSettings(model=checkpoint.name, dtype=dtype_name(checkpoint)),
            worker=WorkerSettings(device="cpu", batch_size=batch_size),
            run=RunSettings(workers=1),
            console=Console(file=io.StringIO()),
        )
        records = [json.loads(path.read_text()) for path in Path(out, "commits").iterdir()]
    return max(record["finished"] for record in records) - min(record["started"] for record in records)
