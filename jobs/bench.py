"""Measure speed and memory on this machine, beside the bare model and a plain loop.

What is compared runs in turns within one process; figures are medians, and ratios are medians of the ratios of each
turn. Parts: whole (images to label maps, by steps), merging (beside google/diffseg), settings (what each adds), names
(and walks, at 64 x 64 tokens), pipeline (one actor), growth (tokens, batch, segments, pixels; time and memory). Without
--images it makes scenes of its own.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from diffseg.settings import Dtype
from jobs.common import OK, guarded, parsed
from jobs.printing import print_json

if TYPE_CHECKING:
    from jobs.benchmarks.growth import Growth
    from jobs.benchmarks.measure import Comparison

PARTS = ("whole", "merging", "settings", "names", "pipeline", "growth")
SCENES, SCENE_SIZE = 48, (480, 640)
REGIONS = 9


@dataclass(frozen=True, kw_only=True)
class BenchCommand:
    """The flags of `diffseg bench`. Lists are separated by commas."""

    parts: str = "whole,merging,pipeline"
    """Some of whole, merging, settings, names, pipeline, growth."""
    models: str = "tiny"
    """Of whole, settings and names: tiny, tiny-text, a folder, a hub id, or sd15-random (all of SD 1.5 with random
    weights, 512 px)."""
    dtypes: str = "float32"
    """Of the whole pass: float32, bfloat16, float16."""
    batch_sizes: str = "1,2,4"
    """Of the whole pass."""
    device: str = "cpu"
    """Of the whole pass and settings: cpu, cuda, mps."""
    threads: int | None = None
    """CPU threads of whole and merging; default: all cores. The pipeline and its loop have one."""
    repetitions: int = 5
    """Turns that are counted, after one to warm up."""
    images: Path | None = None
    """Folder of photographs; default: generated scenes."""
    reference: Path | None = None
    """Checkout of google/diffseg, to run its own code too; needs tensorflow and scikit-learn."""
    plot: Path | None = None
    """Also draw the figures into this PNG; growth into a second one beside it."""
    json: bool = False
    """Print JSON, with the seconds of every turn."""


def _check(command: BenchCommand) -> None:
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
    from jobs.benchmarks.measure import cores, machine

    torch.set_num_threads(command.threads or cores())
    keep_freed_memory()  # as workers do; for the bare pass as well
    console = Console(stderr=command.json)
    header = machine(command.device)
    console.print("\n".join(f"{name}: {value}" for name, value in header.items()), highlight=False, markup=False)
    with tempfile.TemporaryDirectory(prefix="diffseg-bench-") as folder:
        photographs = command.images or _scenes(Path(folder))
        comparisons = []
        for comparison in _comparisons(command, photographs):
            comparisons.append(comparison)
            console.print(_table(comparison))
    growths: list[Growth] = []
    if "growth" in command.parts.split(","):
        from jobs.benchmarks.growth import measure_growth

        growths = measure_growth()
        for growth in growths:
            console.print(_growth_table(growth))
    if command.plot is not None:
        _draw(command.plot, comparisons, growths)
    if command.json:
        print_json(
            {
                "machine": header,
                "comparisons": [_plain(c) for c in comparisons],
                "growth": [dataclasses.asdict(g) for g in growths],
            }
        )
    return OK


def _comparisons(command: BenchCommand, photographs: Path) -> Iterator[Comparison]:
    parts = command.parts.split(",")
    if "whole" in parts:
        from jobs.benchmarks.models import checkpoint_of
        from jobs.benchmarks.whole import measure_whole

        images = _decoded(photographs)
        for model in command.models.split(","):
            for dtype in command.dtypes.split(","):
                checkpoint = checkpoint_of(model, dtype=dtype, device=command.device)  # type: ignore[arg-type]
                for batch_size in map(int, command.batch_sizes.split(",")):
                    yield measure_whole(checkpoint, images, batch_size=batch_size, repetitions=command.repetitions)
    if "merging" in parts:
        from jobs.benchmarks.merging import measure_merging

        yield measure_merging(regions=REGIONS, repetitions=command.repetitions, reference=command.reference)
    if "settings" in parts:
        from jobs.benchmarks.models import checkpoint_of
        from jobs.benchmarks.settings import measure_settings

        for model in command.models.split(","):
            checkpoint = checkpoint_of(model, dtype="float32", device=command.device)
            yield measure_settings(checkpoint, _decoded(photographs)[:2], repetitions=command.repetitions)
    if "names" in parts:
        from jobs.benchmarks.models import checkpoint_of
        from jobs.benchmarks.settings import measure_names

        for model in command.models.split(","):
            checkpoint = checkpoint_of(model, dtype="float32", device=command.device, text=True)
            yield measure_names(checkpoint, _decoded(photographs)[:1], repetitions=command.repetitions)
    if "pipeline" in parts:
        from jobs.benchmarks.loop import measure_pipeline

        yield measure_pipeline(photographs, repetitions=command.repetitions)


def _scenes(folder: Path) -> Path:
    """Generated scenes as JPEG files of a photograph's size."""
    from diffseg.tiny.scenes.scenes import generate_scene

    height, width = SCENE_SIZE
    for seed in range(SCENES):
        scene = Image.fromarray(generate_scene(seed, max(SCENE_SIZE)).image)
        scene.crop((0, 0, width, height)).save(folder / f"{seed:03}.jpg", quality=90)
    return folder


def _decoded(photographs: Path) -> list[np.ndarray]:
    from diffseg.images.decode import decode_image
    from jobs.benchmarks.loop import image_files

    most = 8
    return [decode_image(path) for path in image_files(photographs)[:most]]


def _table(comparison: Comparison) -> Table:
    table = Table(title=f"{comparison.part}: {comparison.case}", title_justify="left")
    for column in ("variant", "ms an image", "images/s", f"of {comparison.baseline}", "least to most"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for variant in comparison.seconds:
        seconds = comparison.median(variant)
        least, most = comparison.spread(variant)
        row = (
            f"{1000 * seconds:.1f}",
            f"{1 / seconds:.2f}",
            f"{comparison.ratio(variant):.3f}",
            f"{least:.3f} to {most:.3f}",
        )
        table.add_row(variant, *row)
    for step, seconds in comparison.steps.items():
        table.add_row(f"  ours: {step}", f"{1000 * seconds:.1f}", "", "", "")
    if comparison.notes:
        table.caption = ", ".join(f"{name} {value}" for name, value in comparison.notes.items())
    return table


def _growth_table(growth: Growth) -> Table:
    table = Table(title=f"growth: {growth.against}; ms an image, MB", title_justify="left", padding=0)
    steps = [step for step in growth.points[0].seconds if step in growth.exponents]
    for column in (growth.against, *steps, "peak"):
        table.add_column(column, justify="right")
    for point in growth.points:
        peak = "" if point.peak is None else f"{point.peak / 1e6:.0f}"
        x = f"{point.x / 1e6:g} M" if growth.against == "pixels" else f"{point.x:,}"
        table.add_row(x, *(_milliseconds(point.seconds[step]) for step in steps), peak)
    fitted = (f"{growth.exponents[name]:.2f}" if name in growth.exponents else "" for name in (*steps, "peak"))
    table.add_row("exponent", *fitted)
    return table


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds < 1 else f"{1000 * seconds:.0f}"


def _draw(path: Path, comparisons: Sequence[Comparison], growths: Sequence[Growth]) -> None:
    from jobs.benchmarks.plot import draw_comparisons, draw_growth

    if comparisons:
        draw_comparisons(comparisons, path)
    if growths:
        draw_growth(growths, path.with_stem(f"{path.stem}-growth") if comparisons else path)


def _plain(comparison: Comparison) -> dict[str, Any]:
    variants = comparison.seconds
    return dataclasses.asdict(comparison) | {
        "medians": {variant: comparison.median(variant) for variant in variants},
        "ratios": {variant: comparison.ratio(variant) for variant in variants},
    }


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg bench`; the exit code."""
    return guarded(lambda: _bench(parsed(BenchCommand, argv, "bench", __doc__)))


if __name__ == "__main__":
    sys.exit(main())
