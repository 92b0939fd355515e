"""Label photographs and generated scenes on this machine, and draw a picture of the result.

The demo packs the natural colour photographs of scikit-image and 24 generated scenes with known masks into WebDataset
shards, labels them with the embedded model on two actors of a local Ray, and draws each photograph beside its segments.
It downloads nothing.

Exit codes:
  0: every image is labelled.
  1: some shards or images failed.
  2: scikit-image is missing, or wrong usage.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from diffseg.drawing.overlay import contact_sheet, overlay
from diffseg.images.decode import decode_image
from diffseg.scoring.overlap import covering, overlap
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS, generate_scene
from jobs.common import OK, SOME_FAILED, guarded, parsed
from jobs.printing import CleanConsole, counts_table, print_line
from pipeline.executor.driver import label_run
from pipeline.output.manifest import require_manifest
from pipeline.output.reader import label_rows
from pipeline.output.records import read_run_commits
from pipeline.output.rows import decode_mask
from pipeline.readers.pack import pack_images
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import SourceError, Storage

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "rocket.jpg",
    "hubble_deep_field.jpg",
)
SCENES = 24
SCENES_DRAWN = 6
SAMPLES_PER_SHARD = 6


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """The flags of `diffseg demo`."""

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")] = "demo"
    """Folder for the images, shards, labels and pictures; an earlier demo in it is replaced."""
    workers: int = 2
    """Number of Ray actors."""


def _make_images(folder: Path) -> dict[str, np.ndarray]:
    """Write the images of the demo below a folder.

    Returns:
        The true label map of each scene by key, uint16 [256, 256].

    Raises:
        SourceError: scikit-image, which provides the photographs, is not installed.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SourceError("the demo needs the photographs of scikit-image: pip install 'diffseg-pipeline[demo]'")
    data = Path(spec.origin).parent / "data"
    (folder / "photographs").mkdir(parents=True)
    (folder / "scenes").mkdir()
    for name in PHOTOGRAPHS:
        shutil.copyfile(data / name, folder / "photographs" / name)
    ground_truth = {}
    for seed in islice(HELD_OUT_SEEDS, SCENES):
        scene = generate_scene(seed)
        Image.fromarray(scene.image).save(folder / "scenes" / f"{seed}.png")
        ground_truth[f"scenes/{seed}"] = scene.labels
    return ground_truth


def _read_labels(out: Path) -> dict[str, np.ndarray]:
    """Return the label map of each labelled image by key."""
    storage = Storage(url=str(out))
    shards = read_run_commits(storage, require_manifest(storage)).done
    rows = (row for shard in sorted(shards) for row in label_rows(storage, shard, ("key", "mask")))
    return {row["key"]: decode_mask(row["mask"]) for row in rows if row["mask"] is not None}


def _demo(command: DemoCommand) -> int:
    console = CleanConsole()
    folder = Path(command.folder)
    images, shards, out = folder / "images", folder / "shards", folder / "out"
    for part in (images, shards, out):
        shutil.rmtree(part, ignore_errors=True)
    ground_truth = _make_images(images)
    packed = pack_images(str(images), str(shards), samples_per_shard=SAMPLES_PER_SHARD)
    print_line(
        console,
        f"Packed {len(PHOTOGRAPHS)} photographs and {SCENES} generated scenes into {packed.shards} WebDataset shards. "
        f"Labelling them with the embedded model on {command.workers} Ray actors.",
    )
    summary = label_run(
        str(shards),
        str(out),
        settings=LabelSettings(format="parquet,webdataset"),
        worker=WorkerSettings(device="cpu"),
        run=RunSettings(workers=command.workers),
        console=console,
    )
    console.print(counts_table(summary.counts, summary.seconds, summary.images))
    labels = _read_labels(out)
    scores = [covering(overlap(ground_truth[key], labels[key])) for key in ground_truth if key in labels]
    if scores:
        mean = float(np.mean(scores))
        print_line(console, f"Covering of the true regions of {len(scores)} scenes: {mean:.2f} (1 is perfect)")
    _draw_scenes(images, labels, ground_truth, folder / "scenes.png")
    picture = folder / "labels.png"
    _draw_photographs(images, labels, picture)
    print_line(console, f"\nNow open {picture}: each photograph beside its segments.")
    return SOME_FAILED if summary.failed or summary.failed_share() > 0 else OK


def _draw_photographs(images: Path, labels: dict[str, np.ndarray], picture: Path) -> None:
    """Draw each photograph beside its segments."""
    rows = []
    for path in sorted((images / "photographs").iterdir()):
        pixels = decode_image(path)
        rows.append([pixels, overlay(pixels, labels[f"photographs/{path.stem}"])])
    contact_sheet(rows, columns=2).save(picture)


def _draw_scenes(
    images: Path, labels: dict[str, np.ndarray], ground_truth: dict[str, np.ndarray], picture: Path
) -> None:
    """Draw each of the first scenes, its true regions and its segments side by side."""
    rows = []
    for key in list(ground_truth)[:SCENES_DRAWN]:
        pixels = decode_image(images / f"{key}.png")
        rows.append([pixels, overlay(pixels, ground_truth[key]), overlay(pixels, labels[key])])
    contact_sheet(rows, columns=3, height=128).quantize().save(picture, optimize=True)


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg demo` and return its exit code."""
    command = parsed(DemoCommand, argv, "demo", __doc__)
    return guarded(lambda: _demo(command))


if __name__ == "__main__":
    sys.exit(main())
