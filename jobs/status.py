"""Show the progress of a run: shards by state, rows by status, and the time of each step.

Exit codes:
  0: every shard is done.
  1: some shards failed or are missing.
  2: OUT holds no run.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.common import OK, SOME_FAILED, guarded, parsed
from jobs.printing import counts_table, print_json, print_line
from jobs.run_flags import RunFlags
from pipeline.executor.progress_file import ProgressReport, read_progress
from pipeline.output.commit import totals
from pipeline.output.records import read_run_commits

SHARDS_SHOWN = 10
"""Shards in flight that the table shows; --json has all of them."""


def _status(command: RunFlags) -> int:
    out, manifest = command.open()
    console = Console()
    progress = read_progress(out)
    if progress is not None and not command.json:  # printed first, because reading many records takes a while
        _print_progress(console, progress)
    done, failures, _ = read_run_commits(out, manifest)
    failed = {name: commit.error for name, commit in failures.items()}
    counts, seconds = totals(done.values())
    missing = max(0, manifest.shards - len(done) - len(failed))
    facts = {
        "source": manifest.source,
        "model": manifest.settings["model"],
        "fingerprint": manifest.fingerprint,
        "shards": manifest.shards,
        "done": len(done),
        "failed": failed,
        "missing": missing,
        "counts": dict(counts),
        "seconds": dict(seconds),
        "driver": progress and progress.to_dict() | {"age": progress.age(), "stale": progress.is_stale()},
    }
    if command.json:
        print_json(facts)
    else:
        print_line(console, f"{manifest.source} → {out.redacted}, model {facts['model']}")
        console.print(counts_table(counts, seconds, counts.total()))
        print_line(console, f"{len(done)} of {manifest.shards} shards done, {len(failed)} failed, {missing} missing")
        for name, error in failed.items():
            print_line(console, f"failed: {name}: {error}", "red")
    return SOME_FAILED if failed or missing else OK


def _print_progress(console: Console, progress: ProgressReport) -> None:
    """Print what the driver of the run last wrote to progress.json."""
    driver, age = f"driver on {progress.host}, pid {progress.pid}", duration(progress.age())
    advice = "run the same command again to continue"
    if progress.is_stale():
        print_line(console, f"no sign of a driver for {age} ({driver}); {advice}", "yellow")
    elif progress.state == "running":
        running = duration(progress.written - progress.started)
        print_line(console, f"running for {running}; {driver}, last report {age} ago")
    else:
        ending = f"; {advice}" if progress.state == "stopped" else ""
        print_line(console, f"{progress.state} {age} ago ({driver}){ending}")
    rate = "" if progress.rate is None else f", {progress.rate:.1f}/s over the last {duration(progress.rate_seconds)}"
    print_line(console, f"this run: {progress.done} of {progress.todo} shards, {progress.images:,} images{rate}")
    if progress.state != "running":
        return
    left = f"; about {duration(progress.left)} left" if progress.left is not None else ""
    workers = f"workers: {progress.workers_ready} of {progress.workers_asked} ready"
    shards = f"shards: {len(progress.in_flight)} in flight, {progress.waiting} waiting"
    print_line(console, f"{workers}; {shards}{left}")
    if progress.in_flight:
        console.print(_in_flight_table(progress))


def _in_flight_table(progress: ProgressReport) -> Table:
    table = Table("shard in flight", "attempt", "worker", "for", "samples", "")
    for shard in progress.in_flight[:SHARDS_SHOWN]:
        seconds = duration(shard["seconds"])
        cells = (shard["shard"], shard["attempt"], shard["worker"], seconds, shard["samples"], shard["waiting"])
        table.add_row(*(Text(str(cell)) for cell in cells))
    if len(progress.in_flight) > SHARDS_SHOWN:
        table.add_row(f"and {len(progress.in_flight) - SHARDS_SHOWN} more")
    return table


def duration(seconds: float) -> str:
    """Return a length of time in the unit that suits it: "40 s", "14 min" or "3.2 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg status` and return its exit code."""
    command = parsed(RunFlags, argv, "status", __doc__)
    return guarded(lambda: _status(command))


if __name__ == "__main__":
    sys.exit(main())
