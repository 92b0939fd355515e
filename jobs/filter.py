"""Score the rows of a run without ground truth, and choose those that are kept for training and export.

For each part of the rows a small network is trained on all other parts and predicts the part; cv_iou is the IoU of
that prediction with the row's label map. OUT/filter/keep.parquet receives the scores and whether a row is kept; the
labels stay as they are. `diffseg train`, `export` and `report` use only the kept rows with --filter.
After a stop or a kill, the same command continues. With other thresholds, it uses the same scores and trains nothing.

Exit codes:
  0: the table is written.
  1: the table is written, but some rows could not be scored, or the workers failed.
  2: wrong usage, or refused.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from jobs.common import OK, SOME_FAILED, guarded, parsed
from jobs.printing import CleanConsole, print_json, print_line
from jobs.run_flags import RayFlags, SourceImageFlags
from pipeline.filtering.filter import filter_run
from pipeline.filtering.report import FilterReport
from pipeline.filtering.settings import FoldSettings, KeepSettings
from pipeline.output.keep import TABLE
from pipeline.wording import counted

SHOWN = 5
"""Largest number of problems, and of classes, that are printed; --json prints more."""


@dataclass(frozen=True, kw_only=True)
class FilterCommand(RayFlags, SourceImageFlags):
    """The flags of `diffseg filter`."""

    thresholds: Annotated[KeepSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=KeepSettings)
    settings: Annotated[FoldSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=FoldSettings)
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    """Device of the networks."""
    workers: int = 1
    """Ray actors. Each trains the network of one part, or scores one label shard, at a time."""
    threads: int = 1
    """CPU threads of each worker; the last bits of the weights depend on it."""


def _filter(command: FilterCommand) -> int:
    out, manifest = command.open()
    console = CleanConsole(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("training networks and scoring label shards", total=None)
        report = filter_run(
            out,
            manifest,
            command.settings,
            command.thresholds,
            images=command.images,
            run=command.run_settings(),
            workers=command.workers,
            device=command.device,
            threads=command.threads,
            on_start=lambda parts: bar.update(task, total=parts),
            on_part=lambda: bar.advance(task),
        )
    if command.json:
        print_json(dataclasses.asdict(report))
    else:
        _print(console, report, out.joined(TABLE))
    return SOME_FAILED if report.unscored else OK


def _print(console: CleanConsole, report: FilterReport, path: str) -> None:
    for problem in report.problems[:SHOWN]:
        print_line(console, f"not scored: {problem}", "yellow")
    for name, facts in list(report.classes.items())[: SHOWN if len(report.classes) > 1 else 0]:
        lowest = facts["lowest_cv_iou"]
        above = "" if lowest is None else f", cv_iou from {lowest:.3f}"
        print_line(console, f"{name or 'without a class'}: {facts['kept']:,} of {facts['rows']:,} kept{above}")
    for name in ("cv_iou", "confidence"):
        means = report.means[name]
        if means["all"] is not None and means["kept"] is not None:
            print_line(console, f"mean {name}: {means['all']:.3f} of all rows, {means['kept']:.3f} of the kept ones")
    print_line(console, f"{path}: {report.kept:,} of {counted(report.rows, 'row')} kept")


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg filter` and return its exit code."""
    command = parsed(FilterCommand, argv, "filter", __doc__)
    return guarded(lambda: _filter(command))


if __name__ == "__main__":
    sys.exit(main())
