"""Train a segmentation network on the label maps of a run, and label images with it.

MODEL receives model.safetensors, config.json, metrics.json, curves.png and the checkpoint of the training.
The picture needs the extra `plots`: pip install 'diffseg-pipeline[plots]'
After a stop or a kill, the same command continues from the last checkpoint.
With --predict the trained network also labels images into MODEL/labels, which `diffseg show`, `evaluate` and `export`
read like any run. `diffseg label SRC OUT --network MODEL` does the same for SRC on a cluster, into any OUT.

Exit codes:
  0: the network is trained.
  1: the workers failed, or some shards could not be labelled.
  2: wrong usage, or refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.common import OK, SOME_FAILED, guarded, parsed, storage_options
from jobs.printing import CleanConsole, print_json, print_line
from jobs.run_flags import SelectionFlags, SourceImageFlags, check_val_share
from pipeline.output.selection import RowSelection
from pipeline.storage import SourceError, Storage
from pipeline.training.settings import TrainRunSettings, TrainSettings
from pipeline.wording import counted

if TYPE_CHECKING:
    from pipeline.training.dataset import LabelDataset


@dataclass(frozen=True, kw_only=True)
class TrainCommand(SelectionFlags, SourceImageFlags):
    """The flags of `diffseg train`."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Folder or URL for the network, which every worker must reach."""
    settings: Annotated[TrainSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainSettings)
    run: Annotated[TrainRunSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainRunSettings)
    val_share: float = 0.0
    """Leave out the images that `diffseg export --val-share` puts into the validation part, a share from 0 to 1."""
    predict: str | None = None
    """Images to label with the trained network: a folder, glob or URL."""
    export_onnx: bool = False
    """Also write the trained network as model.onnx. It maps `image`, float32 [B, 3, size, size] in [-1, 1], to the
    `scores` of the classes or to an `embedding`, [B, D, h, w]. Needs diffseg-pipeline[onnx]."""


def _train(command: TrainCommand) -> int:
    # Imported here to keep --help fast: torch takes seconds.
    from pipeline.networks.files import load_network
    from pipeline.networks.onnx_export import FILE, check_onnx, to_onnx
    from pipeline.training.dataset import LabelDataset
    from pipeline.training.state import claim, load_history

    settings, run = command.settings, command.run
    options = storage_options(command.storage_options)
    if options and not run.no_ray:
        raise SourceError(
            "--storage-options with Ray: the head of the cluster would keep the options in plain text. Set the "
            "credentials in the environment of the nodes, or train with --no-ray"
        )
    check_val_share(command.val_share)
    if command.export_onnx:
        check_onnx(settings.recipe)
    selection = command.selection(split=(command.val_share, 1.0))
    dataset = LabelDataset(
        command.out, settings.dataset(selection), images=command.images, rank=0, world_size=1, options=options
    )
    model = Storage(url=command.model, options=options)
    claim(model, settings, fingerprint=dataset.fingerprint, workers=run.workers, selection=selection)
    with _step_bar(settings.steps) as on_record:
        if run.no_ray:
            _train_here(settings, run, dataset, model, on_record)
        else:
            _train_on_ray(command, selection, model, on_record)
    document = _write_metrics(model, settings, run, load_history(model))
    if command.export_onnx:
        model.write_bytes(FILE, to_onnx(*load_network(model)))
    console = CleanConsole(stderr=True)
    if not command.json:
        _print(console, model, document)
    failed = command.predict is not None and _predict(model, command.predict, console)
    if command.json:
        print_json(document)
    return SOME_FAILED if failed else OK


def _predict(model: Storage, images: str, console: Console) -> bool:
    """Label images with the trained network into MODEL/labels; return True if shards have failed."""
    from pipeline.training.predict import predict

    labels = model.at(f"{model.url}/labels")
    summary = predict(model, images, labels, console=console)
    for name, error in summary.failed.items():
        print_line(console, f"failed: {name}: {error}", "red")
    done = summary.shards - len(summary.failed)
    print_line(console, f"{labels.redacted}: {done:,} of {counted(summary.shards, 'shard')} labelled")
    return bool(summary.failed)


@contextmanager
def _step_bar(steps: int) -> Iterator[Callable[[Any], None]]:
    """Show a progress bar of the steps and the loss; call the yielded function with each record of the training."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, TimeRemainingColumn(), console=CleanConsole(stderr=True), transient=True) as bar:
        task = bar.add_task("steps", total=steps, loss="")

        def show(record: Any) -> None:
            bar.update(task, completed=int(record["step"]), loss=f"loss {record['loss']:.3f}")

        yield show


def _train_here(
    settings: TrainSettings,
    run: TrainRunSettings,
    dataset: LabelDataset,
    model: Storage,
    on_record: Callable[[Any], None],
) -> None:
    """Train in this process."""
    from pipeline.training.loop import train

    train(settings, run, dataset, model, device="cuda" if run.use_gpu else "cpu", on_record=on_record)


def _train_on_ray(
    command: TrainCommand, selection: RowSelection, model: Storage, on_record: Callable[[Any], None]
) -> None:
    """Train in the workers of Ray Train."""
    from pipeline.training.on_ray import TrainJob, train_on_ray

    job = TrainJob(
        settings=command.settings,
        run=command.run,
        out=command.out,
        images=command.images,
        model=model.url,
        selection=selection,
    )
    train_on_ray(job, on_record)


def _write_metrics(
    model: Storage, settings: TrainSettings, run: TrainRunSettings, records: list[Any]
) -> dict[str, Any]:
    """Write metrics.json and, with matplotlib, curves.png into MODEL, and return the content of the former."""
    from diffseg.drawing.plot import can_draw
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
    if can_draw("curves.png"):
        model.write_bytes("curves.png", draw_curves(records, f"trained on {settings.target}, {images:,} images"))
    return document


def _print(console: Console, model: Storage, document: dict[str, Any]) -> None:
    images = f"{document['images']:,} images at {document['images_per_second']:g} per second"
    print_line(console, f"{document['steps']:,} steps, {images}; loss {document['loss']:.3f}")
    optional = "".join(f", {name}" for name in ("curves.png", "model.onnx") if model.is_file(name))
    files = f"model.safetensors, config.json, metrics.json{optional}"
    print_line(console, f"{model.redacted}: {files}")


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg train` and return its exit code."""
    command = parsed(TrainCommand, argv, "train", __doc__)
    return guarded(lambda: _train(command))


if __name__ == "__main__":
    sys.exit(main())
