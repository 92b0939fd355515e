"""Learn affinity from the labels of a run, for the stage affinity or walk of another run.

KIND heads learns one weight for each attention head of a resolution (for the stage affinity).
KIND features learns a layer on the features that attention reads (for the stage walk).
The model of the run stays frozen and is applied to images of the run, on a Ray cluster or in this process.
After a stop or a kill, the same command continues.

Exit codes:
  0: the affinity is learned.
  1: the affinity is learned, but some images could not be used.
  2: wrong usage, or refused.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.console import Console

from jobs.common import OK, SOME_FAILED, guarded, parsed, storage_options
from jobs.printing import CleanConsole, print_json, print_line, progress_bar
from pipeline.output.manifest import Manifest, require_manifest
from pipeline.output.source_images import find_source_shards
from pipeline.settings import LabelSettings, RunSettings
from pipeline.storage import SourceError, Storage
from pipeline.training.affinity import FitReport, fit, fit_fingerprint, plan_tasks
from pipeline.training.feature_worker import FitJob
from pipeline.training.settings import AffinityKind, FitSettings
from pipeline.wording import counted

PROBLEMS_SHOWN = 5
"""Problems with images that are printed; --json and the report have all of them."""


@dataclass(frozen=True, kw_only=True)
class FitCommand:
    """The flags of `diffseg fit`."""

    kind: Annotated[tyro.conf.Positional[AffinityKind], tyro.conf.arg(metavar="KIND")]
    """What to learn: heads or features."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder or URL of a run, as given to `diffseg label`."""
    state: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STATE")]
    """File or URL to write, such as affinity.safetensors; a report is written to STATE.json."""
    images: int = 300
    """Maximum number of images to learn from; every fifth is held out to measure generalisation."""
    confidence: float = 0.0
    """Leave out segments with a lower confidence, 0 to 1."""
    source: str | None = None
    """Where the images of SRC are now; default: the place that run.json names."""
    model: str | None = None
    """Where the model of the run is now; default: the place that run.json names."""
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    """Device of the model."""
    workers: int = 1
    """Ray actors, each with a copy of the model."""
    threads: int = 1
    """CPU threads of the model in each worker."""
    no_ray: bool = False
    """Work in this process, without Ray."""
    address: str | None = None
    """Address of a Ray cluster, HOST:PORT, or `auto` or `local`. Default: RAY_ADDRESS, else a cluster that the same
    user started with `ray start` on this machine, else a private Ray."""
    storage_options: str = ""
    """JSON object with options for fsspec, such as credentials or an endpoint."""
    json: bool = False
    """Print the report as JSON."""


def _fit(command: FitCommand) -> int:
    options = storage_options(command.storage_options)
    out, store = Storage(url=command.out, options=options), Storage(url=".", options=options)
    manifest = require_manifest(out)
    if "network" in manifest.resolved:
        raise SourceError(
            f"{out.redacted}: these labels are of a trained network. An affinity is learned from the labels and the "
            "model of the same run; pass the OUT of a run with a Stable Diffusion model"
        )
    folder, _, name = store.at(command.state).url.rpartition("/")
    state = store.at(folder)
    settings = FitSettings(kind=command.kind, images=command.images, confidence=command.confidence)
    job = FitJob(
        settings=settings,
        model=_model_settings(command, manifest),
        timestep=manifest.resolved["timestep"],
        resolution=manifest.resolved["resolution"],
        fingerprint=fit_fingerprint(settings, manifest),
        out=out,
        parts=store.at(f"{folder}/{name}.parts"),
        source=store,
        image_field=manifest.settings["image_field"],
        device=command.device,
        threads=command.threads,
    )
    tasks = plan_tasks(job, manifest, find_source_shards(manifest, store, command.source))
    with progress_bar("reading the attention of label shards", len(tasks)) as advance:
        report = fit(
            job,
            tasks,
            state,
            name,
            run=RunSettings(no_ray=command.no_ray, address=command.address),
            workers=command.workers,
            on_shard=advance,
        )
    if command.json:
        print_json(dataclasses.asdict(report))
    else:
        _print(CleanConsole(), report, state.joined(name))
    return SOME_FAILED if report.problems else OK


def _model_settings(command: FitCommand, manifest: Manifest) -> LabelSettings:
    """Return the settings that load the model of the run."""
    model = {name: manifest.settings[name] for name in ("model", "revision", "vae", "dtype")}
    if command.model:
        model |= {"model": command.model, "revision": None}
    return LabelSettings(**model)


def _print(console: Console, report: FitReport, path: str) -> None:
    for problem in report.problems[:PROBLEMS_SHOWN]:
        print_line(console, problem)
    images = f"{counted(report.images, 'image')} ({len(report.problems)} left out)"
    print_line(console, f"{path}: affinity of {report.kind} for model {report.model}, learned from {images}")
    if report.auc is not None:
        pairs = "pairs of positions in the same segment and in different segments"
        print_line(console, f"ROC AUC over {pairs} of {report.held_out} held-out images: {report.auc:.3f}")


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg fit` and return its exit code."""
    command = parsed(FitCommand, argv, "fit", __doc__)
    return guarded(lambda: _fit(command))


if __name__ == "__main__":
    sys.exit(main())
