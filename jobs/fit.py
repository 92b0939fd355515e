"""Learn affinity from the labels of a run, or references of names from its features.

KIND heads learns one weight for each attention head of a resolution (for the stage affinity).
KIND features learns a layer on the features that attention reads (for the stage walk).
KIND references learns what each name looks like (for the stage references and `diffseg name`), from a run with
--features.
For heads and features the model of the run stays frozen and is applied to images of the run. For references only the
rows of OUT are read. The label shards are read on a Ray cluster or in this process. After a stop or a kill, the same
command continues.

Exit codes:
  0: everything is learned.
  1: everything is learned, but some images could not be used.
  2: wrong usage, or refused.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import tyro
from rich.console import Console

from diffseg.references import Elimination
from jobs.common import OK, SOME_FAILED, guarded, parsed, storage_options
from jobs.printing import CleanConsole, print_json, print_line, progress_bar
from jobs.run_flags import RayFlags
from pipeline.executor.collect import collect
from pipeline.output.manifest import Manifest, require_manifest
from pipeline.output.records import read_run_commits
from pipeline.output.source_images import find_source_shards
from pipeline.readers.names import NameSettings, parse_names
from pipeline.references.learn import learn_references
from pipeline.references.retrieve import ReferenceSettings
from pipeline.references.state import ReferenceReport
from pipeline.report.reference_page import PAGE, write_reference_page
from pipeline.settings import LabelSettings
from pipeline.storage import SourceError, Storage, redact
from pipeline.training.affinity import FitReport, fit, fit_fingerprint, plan_tasks
from pipeline.training.feature_worker import FitJob
from pipeline.training.settings import FitSettings
from pipeline.wording import counted

PROBLEMS_SHOWN = 5
"""Problems with images that are printed; --json and the report have all of them."""


@dataclass(frozen=True, kw_only=True)
class FitCommand(RayFlags):
    """The flags of `diffseg fit`."""

    kind: Annotated[tyro.conf.Positional[Literal["heads", "features", "references"]], tyro.conf.arg(metavar="KIND")]
    """What to learn: heads, features or references."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder or URL of a run, as given to `diffseg label`."""
    state: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STATE")]
    """File or URL to write, such as affinity.safetensors; a report is written to STATE.json. For references a folder or
    URL, which gets references.safetensors, retrieval.parquet, report.json and a page report.html."""
    images: int | None = None
    """Maximum number of images to learn from; every fifth is held out to measure generalisation (default: 300). For
    references, the maximum for each name (default: 50)."""
    by: Literal["labels", "names"] = "labels"
    """References: what says that an image shows a name. labels: the labels or the caption of its sample. names: the
    names of its segments in OUT, the best scores first."""
    names: str = ""
    """References by labels: names, such as person,car; default: those of OUT."""
    labels_field: str | None = None
    """References by labels: field of a sample that lists its names, as in `diffseg label`; default: that of OUT."""
    caption_field: str | None = None
    """References by labels: field of a sample with its caption, as in `diffseg label`; default: that of OUT."""
    contexts: int = 5
    """References: how many of the most frequent names are contexts. Segments that resemble a context are not taken for
    other names."""
    alike: float = 0.8
    """References: cosine with a context at which a segment counts half, −1 to 1."""
    temperature: float = 0.05
    """References: width of the step around --alike."""
    centroids: int = 1
    """References: largest number of vectors of each name, the centroids of its seeds by k-means; a segment is compared
    with the nearest one. 1 takes the mean of the seeds."""
    background: int = 0
    """References: largest number of vectors of the background, also centroids by k-means. A segment that is nearer to
    one of them than to any name is background. By names, they are learned from the segments named `background` in OUT;
    by labels, from the segment of each image that is least like all its names, so the labels should be complete."""
    confidence: float = 0.0
    """Leave out segments with a lower confidence, 0 to 1."""
    source: str | None = None
    """Where the images of SRC are now; default: the place that run.json names. For references they are needed only for
    the page."""
    model: str | None = None
    """Where the model of the run is now; default: the place that run.json names."""
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    """Device of the model."""
    workers: int = 1
    """Ray actors. For heads and features each loads the model."""
    threads: int = 1
    """CPU threads of the model in each worker."""
    storage_options: str = ""
    """JSON object with options for fsspec, such as credentials or an endpoint."""
    json: bool = False
    """Print the report as JSON."""


def _fit(command: FitCommand) -> int:
    options = storage_options(command.storage_options)
    out, store = Storage(url=command.out, options=options), Storage(url=".", options=options)
    manifest = require_manifest(out)
    if command.kind == "references":
        return _fit_references(command, out, manifest, store.at(command.state))
    if "network" in manifest.resolved:
        raise SourceError(
            f"{out.redacted}: these labels are of a trained network. An affinity is learned from the labels and the "
            "model of the same run; pass the OUT of a run with a Stable Diffusion model"
        )
    folder, _, name = store.at(command.state).url.rpartition("/")
    state = store.at(folder)
    settings = FitSettings(
        kind=command.kind,
        images=FitSettings.images if command.images is None else command.images,
        confidence=command.confidence,
    )
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
    tasks = plan_tasks(job, manifest, find_source_shards(manifest, store, command.source, out=out))
    with progress_bar("reading the attention of label shards", len(tasks)) as advance:
        report = fit(
            job,
            tasks,
            state,
            name,
            run=command.run_settings(),
            workers=command.workers,
            on_shard=advance,
        )
    if command.json:
        print_json(dataclasses.asdict(report))
    else:
        _print(CleanConsole(), report, state.joined(name))
    return SOME_FAILED if report.problems else OK


def _fit_references(command: FitCommand, out: Storage, manifest: Manifest, state: Storage) -> int:
    naming = NameSettings(**manifest.settings.get("naming", {}))
    if command.names or command.labels_field or command.caption_field:
        naming = NameSettings(
            names=parse_names(command.names) or naming.names,
            labels_field=command.labels_field,
            caption_field=command.caption_field,
        )
    settings = ReferenceSettings(
        naming=naming,
        by=command.by,
        images=ReferenceSettings.images if command.images is None else command.images,
        contexts=command.contexts,
        elimination=Elimination(alike=command.alike, temperature=command.temperature),
        centroids=command.centroids,
        background=command.background,
    )
    on_workers = partial(collect, run=command.run_settings(), workers=command.workers)
    with progress_bar("reading label shards", len(read_run_commits(out, manifest).done)) as advance:
        report = learn_references(out, manifest, settings, state, collect=on_workers, on_shard=advance)
    _write_page(command, out, manifest, state)
    if command.json:
        print_json(dataclasses.asdict(report))
    else:
        _print_references(CleanConsole(), report, state)
    return SOME_FAILED if report.unused else OK


def _write_page(command: FitCommand, out: Storage, manifest: Manifest, state: Storage) -> None:
    """Write the page of the references, which shows the source images if they can still be read."""
    try:
        sources, missing = find_source_shards(manifest, out, command.source, out=out), ""
    except (SourceError, OSError) as error:
        sources, missing = {}, redact(str(error))
    write_reference_page(state, out, manifest, sources, missing)


def _print_references(console: Console, report: ReferenceReport, state: Storage) -> None:
    for problem in report.problems[:PROBLEMS_SHOWN]:
        print_line(console, problem)
    images = f"{counted(report.images, 'image')} ({report.unused} left out)"
    print_line(console, f"{state.redacted}: references of {counted(len(report.names), 'name')}, from {images}")
    print_line(console, f"what an image shows: {report.route}; retrieved images and seeds: {state.joined(PAGE)}")
    for name, facts in report.names.items():
        of = f"{facts['retrieved']} of {counted(int(facts['images']), 'image')}"
        context = "; a context" if name in report.contexts else ""
        print_line(console, f"  {name}: {of}, mean support {facts['support']:.3f}{context}")


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
