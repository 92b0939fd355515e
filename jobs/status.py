"""Show how far a run is: shards, rows by status, seconds by step."""

from __future__ import annotations

import dataclasses
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.common import OK, SOME_FAILED, RunFolder, counts_table, guarded, parsed, print_json
from pipeline.executor.progress_file import ProgressReport, read_progress
from pipeline.output.commit import read_run_commits, totals

LONGEST = 10
"""Of the shards in hand, how many are shown; --json has them all."""


def _status(command: RunFolder) -> int:
    out, manifest = command.open()
    console = Console()
    heard = read_progress(out)
    if heard is not None and not command.json:  # first, as reading many records takes its time
        _print_heard(console, heard)
    done, failures = read_run_commits(out, manifest)
    failed = {name: failure.error for name, failure in failures.items()}
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
        "driver": heard and dataclasses.asdict(heard) | {"age": heard.age(), "stale": heard.is_stale()},
    }
    if command.json:
        print_json(facts)
    else:
        console.print(f"{manifest.source} → {out.redacted}, model {facts['model']}", markup=False, highlight=False)
        console.print(counts_table(counts, seconds, counts.total()))
        console.print(
            f"{len(done)} of {manifest.shards} shards done, {len(failed)} failed, {missing} missing", highlight=False
        )
        for name, error in failed.items():
            console.print(f"failed: {name}: {error}", style="red", markup=False, highlight=False)
    return SOME_FAILED if failed or missing else OK


def _print_heard(console: Console, heard: ProgressReport) -> None:
    def said(line: str, style: str | None = None) -> None:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    driver, age = f"driver on {heard.host}, pid {heard.pid}", span(heard.age())
    if heard.is_stale():
        said(f"no sign of a driver for {age} ({driver}); run the same command again to go on", "yellow")
    elif heard.state == "running":
        said(f"running for {span(heard.written - heard.started)}; {driver}, last heard {age} ago")
    else:
        again = "; run the same command again to go on" if heard.state == "stopped" else ""
        said(f"{heard.state} {age} ago ({driver}){again}")
    rate = f", {heard.rate:.1f}/s over the last {span(heard.rate_seconds)}" if heard.rate is not None else ""
    said(f"this run: {heard.done} of {heard.todo} shards, {heard.images:,} images{rate}")
    if heard.state != "running":
        return
    left = f"; about {span(heard.left)} left" if heard.left is not None else ""
    workers = f"workers: {heard.workers_ready} of {heard.workers_asked} there"
    said(f"{workers}; shards: {len(heard.in_hand)} in hand, {heard.waiting} waiting{left}")
    if heard.in_hand:
        console.print(_in_hand_table(heard))


def _in_hand_table(heard: ProgressReport) -> Table:
    table = Table("shard in hand", "attempt", "worker", "for", "samples", "")
    for one in heard.in_hand[:LONGEST]:
        cells = (one["shard"], one["attempt"], one["worker"], span(one["seconds"]), one["samples"], one["waiting"])
        table.add_row(*(Text(str(cell)) for cell in cells))
    if len(heard.in_hand) > LONGEST:
        table.add_row(f"and {len(heard.in_hand) - LONGEST} more")
    return table


def span(seconds: float) -> str:
    """A length of time for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg status`; exit code 0 when every shard is done, 1 when some failed or are missing, 2 if refused."""
    command = parsed(RunFolder, argv, "status", __doc__)
    return guarded(lambda: _status(command))


if __name__ == "__main__":
    sys.exit(main())
