"""Score a checkpoint by the protocol of DiffSeg's paper, beside the published numbers.

The validation images of COCO-Stuff or Cityscapes are labelled, and their centre squares are scored at 512 px.
DATA is laid out as in the benchmark notebook of google/diffseg, or as the archives of the data set unpack.
After a stop or a kill, the same command continues.

Exit codes:
  0: everything is labelled and scored.
  1: some images could not be labelled, or some ground truth could not be used.
  2: wrong usage, or nothing to score.
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
    """One benchmark of the paper: its files, its settings and its published numbers.

    Attributes:
        layout: How the ground truth is laid out.
        images: Folders below DATA that may contain the images; the first that exists is used.
        ground_truth: The same for the ground truth.
        tau: Merging threshold of every round.
        accuracy: Published pixel accuracy in percent.
        miou: Published mean IoU in percent.
        images_published: Number of images behind the published numbers.
    """

    layout: LayoutName
    images: tuple[str, ...]
    ground_truth: tuple[str, ...]
    tau: float
    accuracy: float
    miou: float
    images_published: int


BENCHMARKS = {
    "coco-stuff-27": Benchmark(
        layout="coco-stuff",
        images=("val2017", "images/val2017"),
        ground_truth=("annotation_val2017", "stuffthingmaps/val2017", "stuffthingmaps_trainval2017/val2017"),
        tau=1.1,
        accuracy=72.5,
        miou=43.6,
        images_published=2175,
    ),
    "cityscapes-27": Benchmark(
        layout="cityscapes",
        images=("leftImg8bit/val",),
        ground_truth=("gtFine/val",),
        tau=0.9,
        accuracy=76.0,
        miou=21.2,
        images_published=500,
    ),
}


@dataclass(frozen=True, kw_only=True)
class PaperCommand:
    """The flags of `make evaluate-sd`."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Stable Diffusion 1.4 or another model, as in `diffseg label --model`."""
    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Folder that contains the data set."""
    benchmark: Literal["coco-stuff-27", "cityscapes-27"] = "coco-stuff-27"
    """Benchmark of the paper."""
    names: Path | None = None
    """File with the names of the images to use, one per line and without extension; default: all images.
    The published numbers of COCO are of the 2,175 images in Coco164kFull_Stuff_Coarse_7.txt of google/diffseg."""
    out: Path | None = None
    """Folder to write labels and scores to; default: evaluate-sd/BENCHMARK."""
    preset: Literal["google", "paper"] = "google"
    """Settings of the released code (google), or of the text of the paper."""
    resolution: int = 512
    """Side of the square that the model reads and of the scored square, in pixels.
    With another value than 512 the scores do not compare with the published ones."""
    dtype: Dtype = "float32"
    """Type of the weights of the model."""
    worker: Annotated[WorkerSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=WorkerSettings)
    run: Annotated[RunSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=RunSettings)


def _measure(command: PaperCommand) -> int:
    from pipeline.executor.driver import label_run  # imported here to keep --help fast: ray takes seconds

    benchmark = BENCHMARKS[command.benchmark]
    images, ground_truth = (_first_folder(command.data, names) for names in (benchmark.images, benchmark.ground_truth))
    out = command.out or Path("evaluate-sd") / command.benchmark
    if command.names is not None:
        images = _link_images(images, command.names.read_text().split(), out / "images")
    method = settings_of(command.preset, tau=benchmark.tau, resolution=command.resolution)
    summary = label_run(
        str(images),
        str(out / "labels"),
        settings=LabelSettings(model=command.model, dtype=command.dtype, method=method),
        worker=command.worker,
        run=command.run,
        console=Console(stderr=True),
    )
    protocol = ["--layout", benchmark.layout, "--crop", "centre", "--size", str(command.resolution)]
    code = evaluate.main([str(out / "labels"), str(ground_truth), *protocol, "--report", str(out)])
    if code in (OK, SOME_FAILED):
        Console().print(_table(command, benchmark, json.loads((out / "scores.json").read_text())))
    return code or (SOME_FAILED if summary.failed else OK)


def _first_folder(data: Path, names: Sequence[str]) -> Path:
    """Return the first of these folders that exists below DATA. Raises SourceError if none exists."""
    folders = [data / name for name in names if (data / name).is_dir()]
    if not folders:
        raise SourceError(f"{data}: holds none of the folders {', '.join(names)}; expected one of them")
    return folders[0]


def _link_images(images: Path, names: Sequence[str], folder: Path) -> Path:
    """Fill a folder with links to the images of these names, and return it. Raises SourceError if some are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in names if not (images / f"{name}.jpg").exists()]
    if missing or not names:
        raise SourceError(f"{images}: lacks {len(missing)} of {len(names)} images, among them {', '.join(missing[:3])}")
    for name in names:
        link = folder / f"{name}.jpg"
        if not link.exists():
            link.symlink_to((images / link.name).absolute())
    return folder


def _table(command: PaperCommand, benchmark: Benchmark, document: dict) -> Table:
    methods = {method["name"]: method for method in document["methods"]}
    caption = (
        f"Centre square of {command.resolution} px, tau {benchmark.tau}, preset {command.preset}; Hungarian matching "
        "for each image, pixels counted by class over all images. Published: DiffSeg (CVPR 2024) at 512 px with Stable "
        f"Diffusion 1.4, {benchmark.images_published:,} images. Our label maps have the size of the image and are "
        "scored at the nearest pixels."
    )
    table = Table(title=f"{command.benchmark} by the paper's protocol", caption=caption, title_justify="left")
    for column in ("", "images", "accuracy %", "mIoU %"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("published", f"{benchmark.images_published:,}", f"{benchmark.accuracy:.1f}", f"{benchmark.miou:.1f}")
    for name in ("this run", "one segment"):
        if name in methods and methods[name]["figures"]:
            figures = [methods[name]["figures"][f"class_{score}"] for score in ("accuracy", "miou")]
            cells = [f"{100 * figure['mean']:.1f} ±{100 * figure['half_width']:.1f}" for figure in figures]
            label = f"{command.model}, this run" if name == "this run" else name
            table.add_row(label, f"{methods[name]['images']:,}", *cells)
    return table


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    command = parsed(PaperCommand, argv, "evaluate-sd", __doc__)
    return guarded(lambda: _measure(command))


if __name__ == "__main__":
    sys.exit(main())
