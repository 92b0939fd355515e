"""Check every file of a run against the size, checksum and rows that were committed, and its shards against SRC.

Exit codes:
  0: every file is as committed, and SRC has not changed since or cannot be listed.
  1: a file is damaged, missing or not part of a finished shard, a shard is not done, or SRC has changed.
  2: OUT holds no run.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass

from jobs.common import OK, SOME_FAILED, guarded, parsed
from jobs.printing import CleanConsole, print_json, print_line
from jobs.run_flags import RunFlags
from pipeline.output.listing import read_listing
from pipeline.output.manifest import command_of
from pipeline.output.records import list_records
from pipeline.output.source_changes import SourceChanges, compare_with_source
from pipeline.output.verify import Verdict, delete_bad_records, verify_run
from pipeline.wording import counted

FAILED_SHOWN = 5
"""Names of failed shards that are printed."""


@dataclass(frozen=True, kw_only=True)
class VerifyCommand(RunFlags):
    """The flags of `diffseg verify`."""

    redo: bool = False
    """Delete the commit records of damaged shards, so that the command that made the run makes these shards
    again."""


def _verify(command: VerifyCommand) -> int:
    out, manifest = command.open()
    verdict = verify_run(out, manifest)
    listing = read_listing(out, manifest.listing)
    records = list_records(out, manifest.fingerprint, listing)
    changes = compare_with_source(manifest, listing, records, command.store())
    if command.redo:
        delete_bad_records(out, verdict)
    if command.json:
        facts = dataclasses.asdict(verdict) | {"source": dataclasses.asdict(changes)}
        del facts["records"]
        print_json(facts)
    else:
        _print(verdict, changes, command_of(manifest.settings), records_deleted=command.redo)
    return OK if verdict.is_whole and not changes else SOME_FAILED


def _print(verdict: Verdict, changes: SourceChanges, command: str, *, records_deleted: bool) -> None:
    console, same_command = CleanConsole(), f"run the same `{command}` again"
    for shard, problems in verdict.problems.items():
        for problem in problems:
            print_line(console, f"shard {shard}: {problem}", "red")
    for path in verdict.stray:
        advice = f"`{command}` writes it again, or you can delete it"
        print_line(console, f"{path}: belongs to no finished shard; {advice}", "red")
    if verdict.failed:
        names = ", ".join(verdict.failed[:FAILED_SHOWN]) + ", …" * (len(verdict.failed) > FAILED_SHOWN)
        print_line(
            console, f"{counted(len(verdict.failed), 'shard')} failed ({names}); `diffseg status` shows why", "red"
        )
    if verdict.missing:
        print_line(console, f"{counted(verdict.missing, 'shard')} without a record; {same_command}", "red")
    if verdict.gone and not changes.gone:
        left = counted(len(verdict.gone), "shard")
        print_line(console, f"{left} left from an earlier state of SRC; {same_command}", "red")
    for line in changes.lines():
        print_line(console, line, "red" if changes else "yellow")
    if verdict.problems:
        first_step = "" if records_deleted else "`diffseg verify --redo`, then "
        shards = ", ".join(verdict.problems)
        print_line(console, f"to repair the damaged shards, run {first_step}the same `{command}`: {shards}")
    result = "everything is as committed" if verdict.is_whole else "the run is damaged or incomplete"
    if verdict.is_whole and changes:
        result += ", but SRC has changed"
    numbers = {"shard": verdict.shards, "row": verdict.rows, "file": verdict.files}
    print_line(console, f"{', '.join(counted(number, noun) for noun, number in numbers.items())}: {result}")


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg verify` and return its exit code."""
    command = parsed(VerifyCommand, argv, "verify", __doc__)
    return guarded(lambda: _verify(command))


if __name__ == "__main__":
    sys.exit(main())
