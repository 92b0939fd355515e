"""All figures of a GPU in under five minutes: `make bench-gpu`, or `python -m jobs.benchmarks.gpu` without a network.

It measures SD 1.5 and SDXL with random weights, which cost what real weights cost, and the embedded model, without Ray.
The tables show each case; the last one, in Markdown, sums up. With --small everything is tiny, to try it on a CPU.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg.settings import Dtype
from jobs.common import OK, guarded, parsed
from jobs.printing import CleanConsole, print_json, print_line

if TYPE_CHECKING:
    from jobs.benchmarks.measure import Comparison


@dataclass(frozen=True, kw_only=True)
class GpuBenchCommand:
    """The flags of `make bench-gpu`."""

    device: str = "cuda"
    """Device to measure."""
    repetitions: int = 2
    """Turns that are measured, after one turn to warm up."""
    small: bool = False
    """Measure tiny models of the same layouts on few images, which says nothing about speed."""
    json: bool = False
    """Print JSON, with the seconds of every turn."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured of one model.

    Attributes:
        model: Name of the model.
        dtype: Type of its weights.
        batch_sizes: Batch sizes of part whole.
        resolutions: Further sides of the model's square, in pixels, which are measured with single images.
        pipeline: Batch size of part pipeline; None to leave it out.
        compiled: Whether the model is compiled, in the bare pass too. The time of compiling counts for no variant.
    """

    model: str
    dtype: Dtype
    batch_sizes: Sequence[int]
    resolutions: Sequence[int] = ()
    pipeline: int | None = None
    compiled: bool = False


CASES = (
    Case(
        model="sd15-random",
        dtype="bfloat16",
        batch_sizes=(1, 8, 16, 32),
        resolutions=(768, 1024),  # 96² and 128² tokens
        pipeline=16,
    ),
    Case(model="sd15-random", dtype="bfloat16", batch_sizes=(16,), pipeline=16, compiled=True),
    Case(model="sd15-random", dtype="float16", batch_sizes=(16,)),
    Case(model="sdxl-random", dtype="bfloat16", batch_sizes=(1, 4)),
    Case(model="tiny", dtype="float32", batch_sizes=(1, 32), pipeline=32),
)


def _small(case: Case) -> Case:
    """Return a case that takes seconds on a CPU."""
    pipeline = None if case.model == "tiny" else case.pipeline and 2
    sizes = {"batch_sizes": (2,), "resolutions": case.resolutions and (128,)}
    return dataclasses.replace(case, dtype="float32", pipeline=pipeline, **sizes)  # type: ignore[arg-type]


def measure(command: GpuBenchCommand, folder: Path) -> Iterator[Comparison]:
    """Measure all cases on the images of a folder."""
    import torch

    from diffseg.model.compilation import compile_model
    from jobs.benchmarks.images import read_images
    from jobs.benchmarks.loop import BATCHES, measure_pipeline
    from jobs.benchmarks.models import checkpoint_of
    from jobs.benchmarks.whole import measure_whole

    images, repetitions = read_images(folder), command.repetitions
    for case in (_small(case) for case in CASES) if command.small else CASES:
        checkpoint = checkpoint_of(case.model, dtype=case.dtype, device=command.device, small=command.small)
        if case.compiled:
            checkpoint = dataclasses.replace(checkpoint, name=f"{checkpoint.name}, compiled")
            compile_model(checkpoint.vae, checkpoint.unet, backend="eager" if command.small else "inductor")
        own_side = 64 if command.small else None
        for size, side in [*((size, own_side) for size in case.batch_sizes), *((1, side) for side in case.resolutions)]:
            yield measure_whole(checkpoint, images, batch_size=size, repetitions=repetitions, resolution=side)
        if case.pipeline is not None:
            batches, size = 1 if command.small else BATCHES, case.pipeline
            yield measure_pipeline(
                checkpoint, folder, batch_size=size, repetitions=repetitions, with_actor=False, batches=batches
            )
        del checkpoint
        gc.collect()
        torch.cuda.empty_cache()


def agreement(device: str, scenes: int) -> float:
    """Return the share of the pixels of scenes on which the embedded model labels as it does on a CPU."""
    import numpy as np

    from diffseg import Segmenter
    from diffseg.tiny.scenes.scenes import generate_scene

    images: list[Any] = [generate_scene(seed, 256).image for seed in range(scenes)]
    here, there = (Segmenter.from_pretrained("tiny", device=place)(images) for place in ("cpu", device))
    return float(np.mean([(one.labels == other.labels).mean() for one, other in zip(here, there, strict=True)]))


COLUMNS = (
    "part",
    "case",
    "bare ms",
    "ours ms",
    "ours / bare",
    "images/s",
    "of the loop",
    "of product rate",
    "peak MiB",
)
"""Columns of the summary: milliseconds per image of the bare pass and of ours; images/s of ours, and as a share of
those of the library's own loop; the share of the rate of large products; the most memory of tensors on the GPU."""


def summary_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """Return a Markdown table with a row for each case."""
    rows: list[Sequence[str]] = [COLUMNS, ["---"] * len(COLUMNS)]
    for comparison in comparisons:
        is_whole, notes = comparison.part == "whole", comparison.notes
        variant = "ours" if is_whole else "label"
        bare, ours = comparison.median("bare"), comparison.median(variant)
        row = [comparison.part, comparison.case, f"{1000 * bare:.2f}", f"{1000 * ours:.2f}"]
        row += [f"{ours / bare:.2f}", f"{1 / ours:.1f}"]
        row += ["" if is_whole else f"{comparison.median('loop') / ours:.2f}"]
        row += [str(notes.get(name, "")) for name in ("share of that in ours", "peak MiB on the GPU")]
        rows.append(row)
    return [f"| {' | '.join(row)} |" for row in rows]


def _bench(command: GpuBenchCommand) -> int:
    import torch

    from diffseg.devices import keep_freed_memory
    from jobs.benchmarks.images import write_scenes
    from jobs.benchmarks.measure import machine
    from jobs.benchmarks.tables import comparison_table

    if command.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA device here; --device cpu --small tries the program without one")
    started = time.perf_counter()
    torch.set_num_threads(1)  # as in a worker
    keep_freed_memory()
    console, header = CleanConsole(stderr=command.json), machine(command.device)
    print_line(console, "\n".join(f"{name}: {value}" for name, value in header.items()))
    comparisons: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="diffseg-bench-") as folder:
        images = write_scenes(Path(folder), *((2, (96, 128)) if command.small else ()))
        for comparison in measure(command, images):
            comparisons.append(comparison)
            console.print(comparison_table(comparison))
    same = agreement(command.device, scenes=1 if command.small else 4)
    for line in summary_lines(comparisons):
        print_line(console, line)
    print_line(console, f"labels of the embedded model as on a CPU: {same:.4f} of the pixels")
    print_line(console, f"measured in {time.perf_counter() - started:.0f} s")
    if command.json:
        print_json({"machine": header, "agreement": same, "comparisons": [one.to_dict() for one in comparisons]})
    return OK


def main(argv: list[str] | None = None) -> int:
    """Run all measurements of a GPU and return the exit code."""
    return guarded(lambda: _bench(parsed(GpuBenchCommand, argv, "bench-gpu", __doc__)))


if __name__ == "__main__":
    sys.exit(main())
