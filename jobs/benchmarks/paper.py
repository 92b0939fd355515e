"""Score a checkpoint by published protocols, beside the figures that papers print.

The validation images of a data set are labelled once and scored by each protocol that is published for it.
DATA is laid out as the archives of the data set unpack.
After a stop or a kill, the same command continues.

Exit codes:
  0: everything is labelled and scored.
  1: some images could not be labelled, or some ground truth could not be used.
  2: wrong usage, or nothing to score.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from diffseg.settings import Dtype, settings_of
from jobs import evaluate
from jobs.common import OK, SOME_FAILED, guarded, parsed
from jobs.printing import CleanConsole, print_line
from pipeline.evaluation.protocols import ProtocolName
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import SourceError


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A data set that published protocols score: its files and its settings.

    Attributes:
        protocols: The protocols.
        images: Folders below DATA that may contain the images; the first that exists is used.
        ground_truth: The same for the ground truth.
        lists: Files below DATA that may list the names of the images to use; the first that exists is used. Without
            one, all images are.
        tau: Merging threshold of every round. DiffSeg's paper states it for two of the data sets.
    """

    protocols: tuple[ProtocolName, ...]
    images: tuple[str, ...]
    ground_truth: tuple[str, ...]
    lists: tuple[str, ...] = ()
    tau: float = 1.1


COCO_IMAGES = ("val2017", "images/val2017")
COCO_GROUND_TRUTH = ("annotation_val2017", "stuffthingmaps/val2017", "stuffthingmaps_trainval2017/val2017")
COCO_LISTS = ("Coco164kFull_Stuff_Coarse_7.txt", "curated/val2017/Coco164kFull_Stuff_Coarse_7.txt")
"""The lists of 2,175 images in google/diffseg and in PiCIE."""

BENCHMARKS = {
    "coco-stuff-27": Benchmark(
        protocols=("google-coco-stuff-27", "diffcut-coco-stuff-27"),
        images=COCO_IMAGES,
        ground_truth=COCO_GROUND_TRUTH,
        lists=COCO_LISTS,
    ),
    "cityscapes-27": Benchmark(
        protocols=("google-cityscapes-27", "diffcut-cityscapes-27"),
        images=("leftImg8bit/val",),
        ground_truth=("gtFine/val",),
        tau=0.9,
    ),
    "voc": Benchmark(
        protocols=("diffcut-voc",),
        images=("JPEGImages",),
        ground_truth=("SegmentationClass",),
        lists=("ImageSets/Segmentation/val.txt",),
    ),
    "context": Benchmark(
        protocols=("diffcut-context",),
        images=("JPEGImages",),
        ground_truth=("SegmentationClassContext",),
        lists=("ImageSets/SegmentationContext/val.txt",),
    ),
    "coco-object": Benchmark(
        protocols=("diffcut-coco-object",), images=COCO_IMAGES, ground_truth=COCO_GROUND_TRUTH, lists=COCO_LISTS
    ),
    "ade20k": Benchmark(
        protocols=("diffcut-ade20k",), images=("images/validation",), ground_truth=("annotations/validation",)
    ),
}


@dataclass(frozen=True, kw_only=True)
class PaperCommand:
    """The flags of `make evaluate-sd`."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Stable Diffusion 1.4 or another model, as in `diffseg label --model`."""
    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Folder that contains the data set."""
    benchmark: Literal["coco-stuff-27", "cityscapes-27", "voc", "context", "coco-object", "ade20k"] = "coco-stuff-27"
    """Data set and classes."""
    names: Path | None = None
    """File with the names of the images to use, one per line and without extension; default: the list of the validation
    images below DATA, else all images. The published figures of COCO are of the 2,175 images in
    Coco164kFull_Stuff_Coarse_7.txt of google/diffseg."""
    out: Path | None = None
    """Folder to write labels and scores to; default: evaluate-sd/BENCHMARK."""
    preset: Literal["google", "paper"] = "google"
    """Settings of the released code (google), or of the text of the paper."""
    resolution: int = 512
    """Side of the square that the model reads, in pixels. The published figures of DiffSeg are of 512."""
    dtype: Dtype = "float32"
    """Type of the weights of the model."""
    worker: Annotated[WorkerSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=WorkerSettings)
    run: Annotated[RunSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=RunSettings)


def _measure(command: PaperCommand) -> int:
    from pipeline.executor.driver import label_run  # imported here to keep --help fast: ray takes seconds

    benchmark = BENCHMARKS[command.benchmark]
    images, ground_truth = (_first_folder(command.data, names) for names in (benchmark.images, benchmark.ground_truth))
    out = command.out or Path("evaluate-sd") / command.benchmark
    names = command.names or next(filter(Path.is_file, (command.data / path for path in benchmark.lists)), None)
    if names is not None:
        images = _link_images(images, names.read_text().split(), out / "images")
    method = settings_of(command.preset, tau=benchmark.tau, resolution=command.resolution)
    summary = label_run(
        str(images),
        str(out / "labels"),
        settings=LabelSettings(model=command.model, dtype=command.dtype, method=method),
        worker=command.worker,
        run=command.run,
        console=Console(stderr=True),
    )
    text = (
        f"{command.benchmark}: {command.model} at {command.resolution} px, tau {benchmark.tau}, preset {command.preset}"
    )
    print_line(CleanConsole(), text)
    result = SOME_FAILED if summary.failed else OK
    for protocol in benchmark.protocols:
        report = ["--protocol", protocol, "--report", str(out), "--name", protocol]
        code = evaluate.main([str(out / "labels"), str(ground_truth), *report])
        if code not in (OK, SOME_FAILED):
            return code
        result = max(result, code)
    return result


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


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    command = parsed(PaperCommand, argv, "evaluate-sd", __doc__)
    return guarded(lambda: _measure(command))


if __name__ == "__main__":
    sys.exit(main())
