"""Measure speed and memory on this machine, beside the bare model and a plain loop.

Variants run in turns within one process. Times are medians, and ratios are medians of the ratios of each turn.

Parts:
  whole: from images to label maps by step, beside the bare model.
  merging: merging of attention, beside google/diffseg.
  settings: the cost of each setting.
  names: the cost of naming segments and of random walks, at 64 x 64 tokens.
  features: the cost of features of segments (`diffseg label --features`).
  pipeline: `diffseg label`, beside a plain loop and the bare model; on a CPU also with one actor.
  growth: time and memory by tokens, batch, segments and pixels.
  generate: images from prompts without recording, with recorded attention, and with label maps.

Exit codes:
  0: everything is measured.
  1: a measurement failed.
  2: wrong usage.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from diffseg.settings import Dtype
from jobs.common import OK, guarded, parsed
from jobs.printing import CleanConsole, print_json, print_line

if TYPE_CHECKING:
    from jobs.benchmarks.growth import Growth
    from jobs.benchmarks.measure import Comparison

PARTS = ("whole", "merging", "settings", "names", "features", "pipeline", "growth", "generate")
REGIONS = 9
"""Regions of the planted attention of part merging."""


@dataclass(frozen=True, kw_only=True)
class BenchCommand:
    """The flags of `diffseg bench`."""

    parts: str = "whole,merging,pipeline"
    """Parts to measure, separated by commas."""
    models: str = "tiny"
    """Models of parts whole, settings, names, features, pipeline and generate, separated by commas. Each is tiny,
    tiny-text, a folder, a hub id, or sd15-random or sdxl-random (the layouts of SD 1.5 at 512 px and SDXL at 1024 px
    with random weights). Part generate needs a model with text encoders."""
    dtypes: str = "float32"
    """Types of the weights in parts whole, pipeline and generate, separated by commas: float32, bfloat16, float16."""
    batch_sizes: str = "1,2,4"
    """Batch sizes of parts whole and generate, separated by commas. Part pipeline uses the largest on a GPU, else 1."""
    device: str = "cpu"
    """Device of parts whole, settings, names, features, pipeline and generate: cpu, cuda or mps."""
    steps: int = 25
    """Sampling steps of part generate."""
    size: int | None = None
    """Side of the images of part generate in pixels; default: the size that the model was trained at."""
    threads: int | None = None
    """CPU threads; default: one per core. Part pipeline always uses one thread."""
    repetitions: int = 5
    """Turns that are measured, after one turn to warm up."""
    images: Path | None = None
    """Folder of images; default: generated scenes."""
    reference: Path | None = None
    """Checkout of google/diffseg, to measure its code too; this needs tensorflow and scikit-learn."""
    plot: Path | None = None
    """Also draw the results into this PNG, and those of part growth into a second one beside it.
    This needs matplotlib, from the extra `plots`."""
    json: bool = False
    """Print JSON, with the seconds of every turn."""


def _check(command: BenchCommand) -> None:
    """Raise ValueError for flags that cannot be measured."""
    for name, known in (("parts", PARTS), ("dtypes", get_args(Dtype))):
        unknown = [word for word in getattr(command, name).split(",") if word not in known]
        if unknown:
            raise ValueError(f"--{name}: {', '.join(unknown)}; expected some of {', '.join(known)}")
    sizes, repetitions = command.batch_sizes, command.repetitions
    if not all(word.isdecimal() and int(word) for word in sizes.split(",")) or repetitions < 1:
        raise ValueError(f"--batch-sizes {sizes}, --repetitions {repetitions}: expected whole numbers from 1")


def _bench(command: BenchCommand) -> int:
    _check(command)
    import torch

    from diffseg.devices import keep_freed_memory
    from jobs.benchmarks.images import write_scenes
    from jobs.benchmarks.measure import cores, machine
    from jobs.benchmarks.tables import comparison_table, growth_table

    torch.set_num_threads(command.threads or cores())
    keep_freed_memory()  # as in workers; this also affects the bare pass
    console = CleanConsole(stderr=command.json)
    header = machine(command.device)
    print_line(console, "\n".join(f"{name}: {value}" for name, value in header.items()))
    with tempfile.TemporaryDirectory(prefix="diffseg-bench-") as folder:
        images = command.images or write_scenes(Path(folder))
        comparisons = []
        for comparison in _comparisons(command, images):
            comparisons.append(comparison)
            console.print(comparison_table(comparison))
    growths: list[Growth] = []
    if "growth" in command.parts.split(","):
        from jobs.benchmarks.growth import measure_growth

        growths = measure_growth()
        for growth in growths:
            console.print(growth_table(growth))
    if command.plot is not None:
        _draw(command.plot, comparisons, growths)
    if command.json:
        print_json(
            {
                "machine": header,
                "comparisons": [comparison.to_dict() for comparison in comparisons],
                "growth": [dataclasses.asdict(growth) for growth in growths],
            }
        )
    return OK


def _comparisons(command: BenchCommand, folder: Path) -> Iterator[Comparison]:
    """Measure the parts that compare variants, on the images of a folder."""
    from jobs.benchmarks.images import read_images

    parts = command.parts.split(",")
    batch_sizes = [int(size) for size in command.batch_sizes.split(",")]
    models: list[tuple[str, Any]] = list(itertools.product(command.models.split(","), command.dtypes.split(",")))
    if "whole" in parts:
        from jobs.benchmarks.models import checkpoint_of
        from jobs.benchmarks.whole import measure_whole

        images = read_images(folder)
        for model, dtype in models:
            checkpoint = checkpoint_of(model, dtype=dtype, device=command.device)
            for batch_size in batch_sizes:
                yield measure_whole(checkpoint, images, batch_size=batch_size, repetitions=command.repetitions)
    if "merging" in parts:
        from jobs.benchmarks.merging import measure_merging

        yield measure_merging(regions=REGIONS, repetitions=command.repetitions, reference=command.reference)
    if {"settings", "names", "features"} & set(parts):
        yield from _costs(command, folder)
    if "generate" in parts:
        from jobs.benchmarks.generation import measure_generation
        from jobs.benchmarks.models import checkpoint_of

        for model, dtype in models:
            checkpoint = checkpoint_of(model, dtype=dtype, device=command.device, text=True, decoder=True)
            for batch_size in batch_sizes:
                yield measure_generation(
                    checkpoint,
                    steps=command.steps,
                    size=command.size,
                    batch_size=batch_size,
                    repetitions=command.repetitions,
                )
    if "pipeline" in parts:
        from jobs.benchmarks.loop import BATCHES, measure_pipeline
        from jobs.benchmarks.models import RANDOM_MODELS, checkpoint_of

        on_cpu = command.device == "cpu"
        for model, dtype in models:
            yield measure_pipeline(
                checkpoint_of(model, dtype=dtype, device=command.device),
                folder,
                batch_size=1 if on_cpu else max(batch_sizes),
                repetitions=command.repetitions,
                with_actor=on_cpu and model not in RANDOM_MODELS,
                batches=1 if on_cpu else BATCHES,
            )


def _costs(command: BenchCommand, folder: Path) -> Iterator[Comparison]:
    """Measure the parts that show what something costs beside the pass without it."""
    from jobs.benchmarks.images import read_images
    from jobs.benchmarks.models import checkpoint_of
    from jobs.benchmarks.settings import measure_features, measure_names, measure_settings

    images = read_images(folder)[:2]
    measurements = (
        ("settings", measure_settings, images),
        ("names", measure_names, images[:1]),
        ("features", measure_features, images),
    )
    for part, measure, measured in measurements:
        if part in command.parts.split(","):
            for model in command.models.split(","):
                checkpoint = checkpoint_of(model, dtype="float32", device=command.device, text=part == "names")
                yield measure(checkpoint, measured, repetitions=command.repetitions)


def _draw(path: Path, comparisons: Sequence[Comparison], growths: Sequence[Growth]) -> None:
    """Draw the comparisons into a PNG, and the growth into a second PNG, or into the same if there is nothing else."""
    from diffseg.drawing.plot import can_draw
    from jobs.benchmarks.plot import draw_comparisons, draw_growth

    if not can_draw(str(path)):
        return
    if comparisons:
        draw_comparisons(comparisons, path)
    if growths:
        draw_growth(growths, path.with_stem(f"{path.stem}-growth") if comparisons else path)


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg bench` and return its exit code."""
    return guarded(lambda: _bench(parsed(BenchCommand, argv, "bench", __doc__)))


if __name__ == "__main__":
    sys.exit(main())
