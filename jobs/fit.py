"""Learn from the labels of a run what belongs together: the affinity of attention's heads, or of features.

KIND is heads (one weight for each head of a resolution, for the stage affinity) or features (a layer on what attention
reads). The model of the run is frozen and looks at images of the run, on a Ray cluster or in this process; stopped at
any moment, the same command goes on. Exit code: 0 learned; 1 some images could not be used; 2 wrong usage or refused.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import Progress

from jobs.common import OK, SOME_FAILED, guarded, parsed, storage_options
from jobs.printing import print_json
from pipeline.output.manifest import Manifest, require_manifest
from pipeline.output.source_images import find_source_shards
from pipeline.settings import LabelSettings, RunSettings
from pipeline.storage import Storage
from pipeline.training.affinity import FitJob, FitReport, FitSettings, Kind, fingerprint_of, fit, plan_parts


@dataclass(frozen=True, kw_only=True)
class FitCommand:
    """The flags of `diffseg fit`."""

    kind: Annotated[tyro.conf.Positional[Kind], tyro.conf.arg(metavar="KIND")]
    """heads or features."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder or URL of a run."""
    state: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STATE")]
    """File or URL to write, such as affinity.safetensors; a report is written beside it, with .json at its end."""
    images: int = 300
    """How many images to learn from at most; every fifth is held out, to tell how well it does on others."""
    confidence: float = 0.0
    """Segments of less confidence are left out, 0 to 1."""
    source: str | None = None
    """Where SRC of the run lies now; default: where run.json says."""
    model: str | None = None
    """Where the run's model lies now; default: where run.json says."""
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    """Of the model."""
    workers: int = 1
    """Ray actors, each with the model."""
    threads: int = 1
    """CPU threads of the model in each worker."""
    no_ray: bool = False
    """Work in this process, without Ray."""
    address: str | None = None
    """Of a Ray cluster, or local; default: the one that Ray finds, else a local Ray on this machine."""
    storage_options: str = ""
    """JSON object for fsspec (credentials, endpoint)."""
    json: bool = False
    """Print the report as JSON."""


def _fit(command: FitCommand) -> int:
    options = storage_options(command.storage_options)
    out, store = Storage(url=command.out, options=options), Storage(url=".", options=options)
    manifest = require_manifest(out)
    folder, _, name = store.at(command.state).url.rpartition("/")
    state = store.at(folder)
    settings = FitSettings(kind=command.kind, images=command.images, confidence=command.confidence)
    job = FitJob(
        settings=settings,
        model=_model(command, manifest),
        timestep=manifest.resolved["timestep"],
        resolution=manifest.resolved["resolution"],
        fingerprint=fingerprint_of(settings, manifest),
        out=out,
        parts=store.at(f"{folder}/{name}.parts"),
        source=store,
        image_field=manifest.settings["image_field"],
        device=command.device,
        threads=command.threads,
    )
    parts = plan_parts(job, manifest, find_source_shards(manifest, store, command.source))
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("looking at label shards", total=len(parts))
        report = fit(
            job,
            parts,
            state,
            name,
            run=RunSettings(no_ray=command.no_ray, address=command.address),
            workers=command.workers,
            on_part=lambda: bar.advance(task),
        )
    if command.json:
        print_json(dataclasses.asdict(report))
    else:
        _print(Console(), report, state.joined(name))
    return SOME_FAILED if report.problems else OK


def _model(command: FitCommand, manifest: Manifest) -> LabelSettings:
    """The run's model and how it is loaded."""
    told: dict[str, Any] = {name: manifest.settings[name] for name in ("model", "revision", "vae", "dtype")}
    return LabelSettings(**told | ({"model": command.model, "revision": None} if command.model else {}))


def _print(console: Console, report: FitReport, path: str) -> None:
    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    for problem in report.problems[:5]:
        say(problem)
    say(f"{path}: {report.kind} of {report.model}, from {report.images} images ({len(report.problems)} left out)")
    if report.auc is not None:
        say(f"in {report.held_out} other images the pair that is alike has the higher affinity in {report.auc:.1%}")


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg fit`; the exit code."""
    command = parsed(FitCommand, argv, "fit", __doc__)
    return guarded(lambda: _fit(command))


if __name__ == "__main__":
    sys.exit(main())
