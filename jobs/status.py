"""Show the progress of a run: shards by state, rows by status, the time of each step, and how SRC has changed since.

Exit codes:
  0: every shard is done, and SRC has not changed since or cannot be listed.
  1: some shards failed, are missing, truncated or damaged, or SRC has changed.
  2: OUT holds no run.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.common import OK, SOME_FAILED, guarded, parsed
from jobs.printing import BROKEN_ADVICE, CleanConsole, counts_table, print_json, print_line, print_work
from jobs.run_flags import RunFlags
from pipeline.executor.progress_file import ProgressReport, read_progress
from pipeline.output.commit import totals
from pipeline.output.listing import Listing, read_listing
from pipeline.output.manifest import Manifest
from pipeline.output.overview import NOT_OK, Overview, read_overview
from pipeline.output.source_changes import compare_with_source
from pipeline.output.work import WorkStatistics
from pipeline.readers.left_out import left_out_lines
from pipeline.wording import counted, duration

SHARDS_SHOWN = 10
"""Shards that a table or a line shows; --json has all of them."""
SHARD_KINDS = {
    "doubled": "with more than one record, to be labelled again by the next run",
    "stale": "labelled from an earlier version of the source, to be labelled again by the next run",
    "gone": "left from an earlier state of SRC, to be removed by the next run",
    "kept": "no longer in SRC, but kept",
}
"""What is said about shards that are neither done nor failed nor missing."""


def _status(command: RunFlags) -> int:
    out, manifest = command.open()
    console = CleanConsole()
    progress = read_progress(out)
    if progress is not None and not command.json:  # printed first, because listing many records takes a while
        _print_progress(console, progress)
    listing = read_listing(out, manifest.listing)
    overview = read_overview(out, manifest.fingerprint, listing)
    changes = compare_with_source(manifest, listing, overview.records, command.store())
    facts = _facts(manifest, overview, listing)
    if command.json:
        driver = progress and progress.to_dict() | {"age": progress.age(), "stale": progress.is_stale()}
        print_json(facts | {"driver": driver, "source_changes": dataclasses.asdict(changes)})
    else:
        print_line(console, f"{', '.join(manifest.source.splitlines())} → {out.redacted}, model {facts['model']}")
        console.print(counts_table(facts["counts"], facts["seconds"], facts["sample"]["rows"]))
        _print_sample(console, facts)
        print_work(console, {} if progress is None else progress.nodes, facts["work"])
        _print_shards(console, facts)
        for line in left_out_lines(manifest.left_out):
            print_line(console, line, "yellow")
        for line in changes.lines():
            print_line(console, line, "yellow")
    is_done = not any(facts[name] for name in ("failed", "missing", "doubled", "stale", "gone", "broken"))
    return OK if is_done and not changes else SOME_FAILED


def _facts(manifest: Manifest, overview: Overview, listing: Listing | None) -> dict[str, Any]:
    """Return what the records of OUT say about the run. `seconds` are those of the records in the sample."""
    done, failures, records = overview.done, overview.failed, overview.records
    read, seconds = totals(overview.sample)
    not_ok, failing_records = overview.not_ok
    kept = sorted(shard for shard in done if listing is not None and shard not in listing.inputs)
    shards = manifest.shards if listing is None else len(listing.inputs)
    return {
        "source": manifest.source,
        "model": manifest.settings["model"],
        "fingerprint": manifest.fingerprint,
        "shards": shards,
        "done": len(done) - len(kept),
        "failed": dict(failures),
        "missing": max(0, shards - (len(done) - len(kept)) - len(failures)),
        "doubled": sorted(records.doubled),
        "stale": sorted(records.stale),
        "gone": sorted(records.gone),
        "kept": kept,
        "broken": {shard: name.broken for shard, name in sorted(done.items()) if name.broken},
        "left_out": dict(manifest.left_out),
        "counts": dict(overview.counts),
        "seconds": dict(seconds),
        "work": WorkStatistics.of(overview.sample).plain(),
        "sample": {
            "records": len(overview.sample),
            "of": len(done),
            "rows": read.total(),
            "not_ok": dict(not_ok),
            "not_ok_records": failing_records,
        },
    }


def _print_sample(console: Console, facts: Mapping[str, Any]) -> None:
    """Say which of the numbers come from a sample of the records."""
    sample = facts["sample"]
    if sample["records"] < sample["of"]:
        print_line(
            console, f"ms per image, nodes and slowest shards: from {sample['records']:,} of {sample['of']:,} records"
        )
    if NOT_OK in facts["counts"]:
        statuses = ", ".join(f"{status} {rows:,}" for status, rows in sorted(sample["not_ok"].items()))
        print_line(console, f"rows that are not ok in {sample['not_ok_records']:,} of the records: {statuses}")


def _print_shards(console: Console, facts: Mapping[str, Any]) -> None:
    failed, missing = len(facts["failed"]), facts["missing"]
    print_line(
        console, f"{facts['done']:,} of {counted(facts['shards'], 'shard')} done, {failed} failed, {missing} missing"
    )
    for kind, text in SHARD_KINDS.items():
        if names := facts[kind]:
            shown = ", ".join(names[:SHARDS_SHOWN]) + (", …" if len(names) > SHARDS_SHOWN else "")
            print_line(console, f"{counted(len(names), 'shard')} {text}: {shown}", "yellow")
    for name, status in facts["broken"].items():
        print_line(console, f"{status}: {name}: {BROKEN_ADVICE}", "red")
    for name, error in facts["failed"].items():
        print_line(console, f"failed: {name}: {error}", "red")


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
    print_line(
        console,
        f"this run: {progress.done:,} of {counted(progress.todo, 'shard')}, {counted(progress.images, 'image')}{rate}",
    )
    if progress.startup_seconds is not None:
        print_line(console, f"workers started within {duration(progress.startup_seconds)}")
    if progress.state != "running":
        return
    left = f"; about {duration(progress.left)} left" if progress.left is not None else ""
    workers = f"workers: {progress.workers_ready} of {progress.workers_asked} ready"
    shards = f"shards: {len(progress.in_flight)} in flight, {progress.waiting} waiting"
    print_line(console, f"{workers}; {shards}{left}")
    if progress.gpu_utilisation is not None and progress.gpu_memory_share is not None:
        busy, memory = (f"{100 * share:.0f} %" for share in (progress.gpu_utilisation, progress.gpu_memory_share))
        print_line(console, f"GPUs: {busy} busy, {memory} of memory in use")
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


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg status` and return its exit code."""
    command = parsed(RunFlags, argv, "status", __doc__)
    return guarded(lambda: _status(command))


if __name__ == "__main__":
    sys.exit(main())
