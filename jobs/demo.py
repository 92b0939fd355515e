"""Label photographs and generated scenes on this machine and make a picture of the result.

Packs the natural colour photographs that scikit-image carries and 24 generated scenes with known masks into WebDataset
shards, labels them with the embedded model on a local Ray with two actors, and draws image | segments for each
photograph. Nothing is downloaded.
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
from rich.console import Console

from diffseg.drawing.overlay import contact_sheet, overlay
from diffseg.images.decode import decode_image
from diffseg.scoring.overlap import covering, overlap
from diffseg.tiny.scenes.scenes import HELD_OUT_SEEDS, generate_scene
from jobs.common import OK, SOME_FAILED, guarded, parsed
from jobs.printing import counts_table
from pipeline.executor.driver import label_run
from pipeline.output.commit import read_run_commits
from pipeline.output.manifest import require_manifest
from pipeline.output.reader import label_rows
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
    """Where images, shards, labels and the picture go; what an earlier demo left there is replaced."""
    workers: int = 2
    """Actors."""


def _make_images(folder: Path) -> dict[str, np.ndarray]:
    """Write the images; the true label maps of the scenes, uint16 [256, 256], by key."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SourceError("the demo's photographs come with scikit-image: pip install 'diffseg-pipeline[demo]'")
    data = Path(spec.origin).parent / "data"
    (folder / "photographs").mkdir(parents=True)
    (folder / "scenes").mkdir()
    for name in PHOTOGRAPHS:
        shutil.copyfile(data / name, folder / "photographs" / name)
    truth = {}
    for seed in islice(HELD_OUT_SEEDS, SCENES):
        scene = generate_scene(seed)
        Image.fromarray(scene.image).save(folder / "scenes" / f"{seed}.png")
        truth[f"scenes/{seed}"] = scene.labels
    return truth


def _read_labels(out: Path) -> dict[str, np.ndarray]:
    storage = Storage(url=str(out))
    shards = read_run_commits(storage, require_manifest(storage)).done
    rows = (row for shard in sorted(shards) for row in label_rows(storage, shard, ("key", "mask")))
    return {row["key"]: decode_mask(row["mask"]) for row in rows if row["mask"] is not None}


def _demo(command: DemoCommand) -> int:
    console = Console()
    folder = Path(command.folder)
    images, shards, out = folder / "images", folder / "shards", folder / "out"
    for part in (images, shards, out):
        shutil.rmtree(part, ignore_errors=True)
    truth = _make_images(images)
    packed = pack_images(str(images), str(shards), samples_per_shard=SAMPLES_PER_SHARD)
    console.print(
        f"{len(PHOTOGRAPHS)} photographs and {SCENES} generated scenes packed into {packed.shards} WebDataset shards; "
        f"labelling them with the embedded model on {command.workers} Ray actors.",
        highlight=False,
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
    scores = [covering(overlap(truth[key], labels[key])) for key in truth if key in labels]
    if scores:
        mean = float(np.mean(scores))
        console.print(f"covering of the {len(scores)} scenes' true regions: {mean:.2f} (1 is perfect)", highlight=False)
    _draw_scenes(images, labels, truth, folder / "scenes.png")
    picture = folder / "labels.png"
    _draw_photographs(images, labels, picture)
    console.print(f"\nNow open [bold]{picture}[/bold]: image | overlay of segments, for every photograph.")
    return SOME_FAILED if summary.failed or summary.failed_share() > 0 else OK


def _draw_photographs(images: Path, labels: dict[str, np.ndarray], picture: Path) -> None:
    rows = []
    for path in sorted((images / "photographs").iterdir()):
        pixels = decode_image(path)
        rows.append([pixels, overlay(pixels, labels[f"photographs/{path.stem}"])])
    contact_sheet(rows, columns=2).save(picture)


def _draw_scenes(images: Path, labels: dict[str, np.ndarray], truth: dict[str, np.ndarray], picture: Path) -> None:
    """image | true regions | segments."""
    rows = []
    for key in list(truth)[:SCENES_DRAWN]:
        pixels = decode_image(images / f"{key}.png")
        rows.append([pixels, overlay(pixels, truth[key]), overlay(pixels, labels[key])])
    contact_sheet(rows, columns=3, height=128).quantize().save(picture, optimize=True)


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg demo`; the exit code."""
    command = parsed(DemoCommand, argv, "demo", __doc__)
    return guarded(lambda: _demo(command))


if __name__ == "__main__":
    sys.exit(main())
