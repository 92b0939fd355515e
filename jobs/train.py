"""Train a segmentation network on the label maps of a run, and label images with it.

Kill it at any moment: the same command goes on from the last checkpoint. MODEL gets model.safetensors, config.json,
metrics.json, curves.png and the state. With --predict IMAGES the trained network labels them into MODEL/labels, which
`diffseg show`, `evaluate` and `export` read like any run. Exit code: 0 trained; 1 the workers failed; 2 wrong usage.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.common import OK, guarded, parsed, storage_options
from jobs.printing import print_json
from jobs.run_flags import RunFlags
from pipeline.storage import SourceError, Storage
from pipeline.training.settings import TrainRunSettings, TrainSettings


@dataclass(frozen=True, kw_only=True)
class TrainCommand(RunFlags):
    """The flags of `diffseg train`."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Folder or URL for the network; one that every worker reaches."""
    settings: Annotated[TrainSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainSettings)
    run: Annotated[TrainRunSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainRunSettings)
    images: str | None = None
    """Where SRC of the run lies now; default: where run.json says."""
    predict: str | None = None
    """Label these images (folder, glob or URL) with the trained network, into MODEL/labels."""


def _train(command: TrainCommand) -> int:
    # torch takes seconds, and --help should not wait for it
    from pipeline.training.dataset import LabelDataset, RowFilter
    from pipeline.training.loop import train
    from pipeline.training.predict import predict
    from pipeline.training.state import claim, load_history

    settings, run = command.settings, command.run
    options = storage_options(command.storage_options)
    if options and not run.no_ray:
        raise SourceError(
            "--storage-options with Ray: what a trainer is given is kept by the cluster's head. Give credentials by "
            "the nodes' environment variables, or train with --no-ray"
        )
    data: dict[str, Any] = {
        "out": command.out,
        "images": command.images,
        "size": settings.size,
        "target": settings.target,
        "seed": settings.seed,
        "rows": RowFilter(confidence=settings.confidence, segment_confidence=settings.segment_confidence),
        "options": options,
    }
    dataset = LabelDataset(**data, rank=0, world_size=1)
    model = Storage(url=command.model, options=options)
    claim(model, settings, fingerprint=dataset.fingerprint, workers=run.workers)
    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("steps", total=settings.steps, told="")

        def show(record: Any) -> None:
            bar.update(task, completed=int(record["step"]), told=f"loss {record['loss']:.3f}")

        if run.no_ray:
            device = "cuda" if run.use_gpu else "cpu"
            train(
                settings,
                dataset,
                model,
                device=device,
                threads=run.threads,
                loaders=run.loaders,
                save_every=run.save_every,
                on_record=show,
            )
        else:
            from pipeline.training.on_ray import TrainJob, train_on_ray

            job = TrainJob(
                settings=settings,
                dataset=data,
                model=model.url,
                threads=run.threads,
                loaders=run.loaders,
                save_every=run.save_every,
            )
            train_on_ray(job, run, show)
    document = _write_metrics(model, settings, run, load_history(model))
    if command.predict:
        labels = model.at(f"{model.url}/labels")
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("labelling")
            predict(
                model, command.predict, labels, on_shard=lambda done, of: bar.update(task, completed=done, total=of)
            )
    if command.json:
        print_json(document)
    else:
        _print(console, model, document, bool(command.predict))
    return OK


def _write_metrics(
    model: Storage, settings: TrainSettings, run: TrainRunSettings, records: list[Any]
) -> dict[str, Any]:
    """metrics.json and curves.png in MODEL; what the former says."""
    from pipeline.training.curves import draw_curves

    seconds = sum(record["seconds"] for record in records)
    images = settings.steps * settings.batch_size * run.workers
    document = {
        "steps": settings.steps,
        "images": images,
        "seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 2) if seconds else None,
        "loss": records[-1]["loss"],
        "history": records,
    }
    model.write_bytes("metrics.json", json.dumps(document, indent=1).encode())
    model.write_bytes("curves.png", draw_curves(records, f"trained on {settings.target}, {images:,} images"))
    return document


def _print(console: Console, model: Storage, document: dict[str, Any], predicted: bool) -> None:
    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    rate = document["images_per_second"]
    line(
        f"{document['steps']:,} steps, {document['images']:,} images at {rate:g} a second; loss {document['loss']:.3f}"
    )
    line(f"{model.redacted}: model.safetensors, config.json, metrics.json, curves.png" + (", labels" * predicted))


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg train`; the exit code."""
    command = parsed(TrainCommand, argv, "train", __doc__)
    return guarded(lambda: _train(command))


if __name__ == "__main__":
    sys.exit(main())
