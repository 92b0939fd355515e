"""Write a page to look at a run with: gallery, scores, failures, distributions, speed and settings.

The page is OUT/report/index.html. It opens from a disk or a bucket, without a server and without a network.
Writing it again replaces it. Pages of at most 2,000 rows have pictures in full size. The scores are those that
`diffseg evaluate` has written into OUT/report.

Exit codes:
  0: the page is written.
  2: wrong usage, or OUT holds no run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from jobs.common import OK, guarded, parsed
from jobs.printing import CleanConsole, print_json, print_line, progress_bar
from jobs.run_flags import ParallelFlags, SelectionFlags, SourceImageFlags
from pipeline.errors import RunFailed
from pipeline.output.manifest import Manifest
from pipeline.output.records import read_run_commits
from pipeline.readers.samples import Shard
from pipeline.report.row_statistics import RowStatistics
from pipeline.report.write import INDEX, Report, write_report
from pipeline.storage import Storage, redact


@dataclass(frozen=True, kw_only=True)
class ReportCommand(ParallelFlags, SelectionFlags, SourceImageFlags):
    """The flags of `diffseg report`."""

    rows: int = 100_000
    """Maximum number of rows in the gallery.
    The gallery of a larger run shows evenly spaced label shards; the numbers always cover all rows."""


def _report(command: ReportCommand) -> int:
    if command.rows < 1:
        raise ValueError(f"--rows is {command.rows}; expected at least 1")
    out, manifest = command.open()
    done, failed, _ = read_run_commits(out, manifest)
    sources, missing_reason = _source_shards(command, manifest)
    report = Report(
        out=out,
        manifest=manifest,
        commits=done,
        failed={name: commit.error for name, commit in failed.items()},
        sources=sources,
        images_missing=missing_reason,
        rows=command.rows,
        selection=command.selection(),
    )
    with progress_bar("reading label shards", len(done)) as advance:
        statistics = write_report(
            report, processes=command.process_count, address=command.ray_address, on_shard=advance
        )
    if command.json:
        print_json({"page": out.joined(INDEX), "counts": statistics.statuses, "photographs": missing_reason or "found"})
    else:
        _print(out, statistics, missing_reason, nothing="no rows yet" if not done else "no row is selected")
    return OK


def _source_shards(command: ReportCommand, manifest: Manifest) -> tuple[dict[str, Shard], str]:
    """Return the shards that the run labelled, by name, or the reason why they cannot be read."""
    try:
        return command.source_shards(manifest), ""
    except RunFailed as error:
        return {}, redact(str(error))


def _print(out: Storage, statistics: RowStatistics, missing_reason: str, *, nothing: str) -> None:
    console = CleanConsole(stderr=True)
    if missing_reason:
        print_line(console, f"the page shows segments without source images: {missing_reason}", "yellow")
    counts = ", ".join(f"{rows:,} {status}" for status, rows in statistics.statuses.most_common())
    print_line(console, f"{out.joined(INDEX)}: {counts or nothing}")


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg report` and return its exit code."""
    command = parsed(ReportCommand, argv, "report", __doc__)
    return guarded(lambda: _report(command))


if __name__ == "__main__":
    sys.exit(main())
