"""Write a page to look at a run with: gallery, failures, distributions, speed and settings.

It lies in OUT/report and opens from a disk or a bucket, without a server and without a network: index.html. Writing it
again replaces it. Exit code: 0 the page is written; 2 wrong usage.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress

from jobs.common import OK, guarded, parsed, storage_options
from jobs.printing import print_json
from jobs.run_flags import RunFlags
from pipeline.output.commit import read_run_commits
from pipeline.output.manifest import Manifest
from pipeline.output.source_images import find_source_shards
from pipeline.readers.samples import Shard
from pipeline.report.facts import Facts
from pipeline.report.write import INDEX, Report, write_report
from pipeline.storage import SourceError, Storage, redact


@dataclass(frozen=True, kw_only=True)
class ReportCommand(RunFlags):
    """The flags of `diffseg report`."""

    images: str | None = None
    """Where SRC of the run lies now, for the photographs; default: where run.json says."""
    rows: int = 100_000
    """In the gallery at most; of a larger run those of evenly spread label shards. All numbers are of all rows."""
    processes: int | None = None
    """At once on this machine; default: one a core."""
    address: str | None = None
    """Of a Ray cluster whose CPUs do the work instead; default: RAY_ADDRESS, else this machine."""


def _report(command: ReportCommand) -> int:
    if command.rows < 1:
        raise ValueError(f"--rows is {command.rows}; expected at least 1")
    out, manifest = command.open()
    commits, failures = read_run_commits(out, manifest)
    sources, gone = _sources(command, manifest)
    report = Report(
        out=out,
        manifest=manifest,
        commits=commits,
        failed={name: failure.error for name, failure in failures.items()},
        sources=sources,
        photographs_gone=gone,
        rows=command.rows,
    )
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading label shards", total=len(commits))
        facts = write_report(
            report,
            processes=command.processes or os.cpu_count() or 1,
            address=command.address or os.environ.get("RAY_ADDRESS"),
            on_part=lambda: bar.advance(task),
        )
    if command.json:
        print_json({"page": out.joined(INDEX), "counts": facts.statuses, "photographs": gone or "found"})
    else:
        _print(out, facts, gone)
    return OK


def _sources(command: ReportCommand, manifest: Manifest) -> tuple[dict[str, Shard], str]:
    """The shards that were labelled, by name; or why they cannot be had."""
    store = Storage(url=".", options=storage_options(command.storage_options))
    try:
        return find_source_shards(manifest, store, command.images), ""
    except (SourceError, OSError) as error:
        return {}, redact(f"{error}. --images says where the photographs of the run lie now")


def _print(out: Storage, facts: Facts, gone: str) -> None:
    console = Console(stderr=True)

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    if gone:
        line(f"the page shows segments without photographs: {gone}", "yellow")
    counts = ", ".join(f"{rows:,} {status}" for status, rows in facts.statuses.most_common())
    line(f"{out.joined(INDEX)}: {counts or 'no rows yet'}")


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg report`; the exit code."""
    command = parsed(ReportCommand, argv, "report", __doc__)
    return guarded(lambda: _report(command))


if __name__ == "__main__":
    sys.exit(main())
