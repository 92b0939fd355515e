"""Measure a checkpoint by the protocol of DiffSeg's paper, beside the figures that were published.

Labels COCO-Stuff's or Cityscapes' validation images, whose folders are taken as google/diffseg's benchmark notebook
has them or as the archives unpack, and scores their centre squares at 512 px. Stopped, the same command goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from diffseg.settings import Dtype, settings_of
from jobs import evaluate
from jobs.common import OK, SOME_FAILED, guarded, parsed
from pipeline.evaluation.layouts import LayoutName
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import SourceError


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Where DATA holds it, and what the paper says of it.

    images, truths: folders below DATA, the first that is there. tau: of every round. accuracy, miou: published, in
    percent. images_published: how many the figures are of.
    """

    layout: LayoutName
    images: tuple[str, ...]
    truths: tuple[str, ...]
    tau: float
    accuracy: float
    miou: float
    images_published: int


BENCHMARKS = {
    "coco-stuff-27": Benchmark(
        layout="coco-stuff",
        images=("val2017", "images/val2017"),
        truths=("annotation_val2017", "stuffthingmaps/val2017", "stuffthingmaps_trainval2017/val2017"),
        tau=1.1,
        accuracy=72.5,
        miou=43.6,
        images_published=2175,
    ),
    "cityscapes-27": Benchmark(
        layout="cityscapes",
        images=("leftImg8bit/val",),
        truths=("gtFine/val",),
        tau=0.9,
        accuracy=76.0,
        miou=21.2,
        images_published=500,
    ),
}


@dataclass(frozen=True, kw_only=True)
class PublishedCommand:
    """The flags of `make evaluate-sd`."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Stable Diffusion 1.4 or another, as `diffseg label --model` takes it."""
    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Folder of the data set."""
    benchmark: Literal["coco-stuff-27", "cityscapes-27"] = "coco-stuff-27"
    """Which of the paper's two."""
    names: Path | None = None
    """File of image names without extension, one a line, to label those alone: the published COCO figure is of the
    2,175 in google/diffseg's Coco164kFull_Stuff_Coarse_7.txt."""
    out: Path | None = None
    """Folder for labels and scores; default: evaluate-sd/BENCHMARK."""
    preset: Literal["google", "paper"] = "google"
    """Settings of the released code, or of the paper's text."""
    resolution: int = 512
    """Of the model's square and of the scored one; with another than the paper's figures compare with nothing."""
    dtype: Dtype = "float32"
    """Of the model's weights."""
    worker: Annotated[WorkerSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=WorkerSettings)
    run: Annotated[RunSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=RunSettings)


def _measure(command: PublishedCommand) -> int:
    from pipeline.executor.driver import label_run  # ray takes seconds to import, which --help need not wait for

    plan = BENCHMARKS[command.benchmark]
    images, truths = (_first(command.data, names) for names in (plan.images, plan.truths))
    out = command.out or Path("evaluate-sd") / command.benchmark
    if command.names is not None:
        images = _linked(images, command.names.read_text().split(), out / "images")
    method = settings_of(command.preset, tau=plan.tau, resolution=command.resolution)
    summary = label_run(
        str(images),
        str(out / "labels"),
        settings=LabelSettings(model=command.model, dtype=command.dtype, method=method),
        worker=command.worker,
        run=command.run,
        console=Console(stderr=True),
    )
    protocol = ["--layout", plan.layout, "--crop", "centre", "--size", str(command.resolution)]
    code = evaluate.main([str(out / "labels"), str(truths), *protocol, "--report", str(out)])
    if code in (OK, SOME_FAILED):
        Console().print(_table(command, plan, json.loads((out / "scores.json").read_text())))
    return code or (SOME_FAILED if summary.failed else OK)


def _first(data: Path, names: Sequence[str]) -> Path:
    there = [data / name for name in names if (data / name).is_dir()]
    if not there:
        raise SourceError(f"{data}: holds none of the folders {', '.join(names)}; expected one of them")
    return there[0]


def _linked(images: Path, names: Sequence[str], folder: Path) -> Path:
    """A folder of links to the images of these names alone."""
    folder.mkdir(parents=True, exist_ok=True)
    lost = [name for name in names if not (images / f"{name}.jpg").exists()]
    if lost or not names:
        raise SourceError(f"{images}: lacks {len(lost)} of {len(names)} images, among them {', '.join(lost[:3])}")
    for name in names:
        link = folder / f"{name}.jpg"
        if not link.exists():
            link.symlink_to((images / link.name).absolute())
    return folder


def _table(command: PublishedCommand, plan: Benchmark, document: dict) -> Table:
    ours = {method["name"]: method for method in document["methods"]}
    caption = (
        f"Centre square of {command.resolution} px, tau {plan.tau}, preset {command.preset}; Hungarian matching for "
        f"each image, pixels counted by class over all images. Published: DiffSeg (CVPR 2024) at 512 px with Stable "
        f"Diffusion 1.4, {plan.images_published:,} images. Ours come at the image's own size, and the nearest pixels "
        "are scored."
    )
    table = Table(title=f"{command.benchmark} by the paper's protocol", caption=caption, title_justify="left")
    for head in ("", "images", "accuracy %", "mIoU %"):
        table.add_column(head, justify="right" if head else "left")
    table.add_row("published", f"{plan.images_published:,}", f"{plan.accuracy:.1f}", f"{plan.miou:.1f}")
    for name in ("this run", "one segment"):
        if name in ours and ours[name]["figures"]:
            figures = [ours[name]["figures"][f"class_{score}"] for score in ("accuracy", "miou")]
            cells = [f"{100 * figure['mean']:.1f} ±{100 * figure['half_width']:.1f}" for figure in figures]
            shown = f"{command.model}, this run" if name == "this run" else name
            table.add_row(shown, f"{ours[name]['images']:,}", *cells)
    return table


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; exit codes as of `diffseg evaluate`, and 1 where shards could not be labelled."""
    command = parsed(PublishedCommand, argv, "evaluate-sd", __doc__)
    return guarded(lambda: _measure(command))


if __name__ == "__main__":
    sys.exit(main())
