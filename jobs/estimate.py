"""Estimate what labelling SRC takes, before it is started: shards, images, requests, time, cost and the size of OUT.

A few images of SRC are labelled on this machine to measure the speed, or --images-per-second gives it. Run the command
on a machine of the kind that will label; each number of the table says what it rests on. Nothing is written.

Exit codes:
  0: the estimate is printed.
  1: none of the sampled images could be labelled.
  2: wrong usage, or SRC holds nothing to label.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from diffseg.settings import Preset
from jobs.common import OK, guarded, storage_options
from jobs.label import REGISTRY, default_label_settings
from jobs.printing import CleanConsole, print_json
from jobs.streams import printing
from pipeline.readers.sources import join_sources
from pipeline.settings import LabelSettings, WorkerSettings
from pipeline.wording import duration

if TYPE_CHECKING:
    from pipeline.estimate import Quantity

NAMES = {
    "shards": "shards",
    "images": "images",
    "source_bytes": "size of SRC",
    "requests": "requests to stores",
    "out_bytes": "size of OUT",
    "images_per_second": "images/s of one worker",
    "worker_hours": "GPU hours (hours of one worker)",
    "seconds": "time",
    "cost": "cost",
}
"""Name of each quantity in the table."""


@dataclass(frozen=True, kw_only=True)
class SpeedFlags:
    """The flags that an estimate and `diffseg submit --dry-run` share."""

    images_per_second: float | None = None
    """Images per second of one worker, as measured elsewhere."""
    price: float | None = None
    """Price of a worker's machine for an hour, in any currency."""


@dataclass(frozen=True, kw_only=True)
class EstimateCommand(SpeedFlags):
    """The flags of `diffseg estimate`."""

    source: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SRC [SRC …]")]
    """The images, as for `diffseg label`."""
    sample_images: int = 8
    """Images that are labelled to measure the speed. On a GPU use a few hundred, so that batches are full."""
    workers: int = 1
    """Number of workers, usually one for each GPU."""
    preset: Preset = "default"
    """Defaults of the method's flags: ours, those of the paper, or those of google/diffseg."""
    storage_options: str = ""
    """JSON object with options for fsspec, such as credentials or an endpoint."""
    json: bool = False
    """Print JSON instead of a table."""
    label: Annotated[LabelSettings, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: LabelSettings(dtype="auto")
    )
    worker: Annotated[WorkerSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=WorkerSettings)


def parse(argv: list[str]) -> EstimateCommand:
    """Parse the flags of `diffseg estimate`."""
    with printing():
        command = tyro.cli(
            EstimateCommand,
            args=argv,
            default=EstimateCommand(source=tyro.MISSING, label=default_label_settings(argv)),
            prog="diffseg estimate",
            description=__doc__,
            config=(tyro.conf.FlagCreatePairsOff,),
            registry=REGISTRY,
        )
    if command.sample_images < 1 or command.workers < 1:
        raise ValueError(f"--sample-images {command.sample_images}, --workers {command.workers}: expected 1 or more")
    return command


def _estimate(command: EstimateCommand) -> int:
    from pipeline.estimate import estimate, given_speed, measure_speed, survey_source
    from pipeline.storage import Storage

    options = storage_options(command.storage_options)
    store, source = Storage(url=".", options=options), join_sources(command.source)
    survey = survey_source(source, store, command.label, samples=command.sample_images)
    if command.images_per_second is None:
        speed = measure_speed(survey, command.label, command.worker, options)
    else:
        speed = given_speed(command.images_per_second)
    print_estimate(estimate(survey, speed, workers=command.workers, price=command.price), as_json=command.json)
    return OK


def print_estimate(quantities: Mapping[str, Quantity], *, as_json: bool = False) -> None:
    """Print the quantities of `pipeline.estimate.estimate`, each with what it rests on."""
    if as_json:
        print_json({name: dataclasses.asdict(quantity) for name, quantity in quantities.items()})
        return
    table = Table("quantity", "estimate", "basis")
    for name, quantity in quantities.items():
        table.add_row(NAMES[name], _shown(name, quantity.value), quantity.basis)
    CleanConsole().print(table)


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name.endswith("bytes"):
        return _size(value)
    if name == "seconds":
        return duration(value)
    if name in ("images_per_second", "worker_hours") and value < 100:
        return f"{value:.3g}"
    return f"{value:,.2f}" if name == "cost" else f"{value:,.0f}"


def _size(number: float) -> str:
    units = ("bytes", "KB", "MB", "GB", "TB", "PB")
    power = 0
    while number >= 1000 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.3g} {units[power]}"


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg estimate` and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return guarded(lambda: _estimate(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
