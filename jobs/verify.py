"""Check every committed file of a run against its size, checksum and rows."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass

from rich.console import Console

from jobs.common import OK, SOME_FAILED, RunFolder, guarded, parsed, print_json
from pipeline.output.verify import Verdict, verify_run


@dataclass(frozen=True, kw_only=True)
class VerifyCommand(RunFolder):
    """The flags of `diffseg verify`."""

    redo: bool = False
    """Remove the records of the shards with problems, so that the next `diffseg label` does them again."""


def _verify(command: VerifyCommand) -> int:
    out, manifest = command.open()
    verdict = verify_run(out, manifest)
    if command.redo:
        for shard in verdict.problems:
            for path in verdict.records[shard]:
                out.delete(path)
    if command.json:
        facts = dataclasses.asdict(verdict)
        del facts["records"]
        print_json(facts)
    else:
        _print(verdict, redone=command.redo)
    return OK if verdict.is_whole else SOME_FAILED


def _print(verdict: Verdict, *, redone: bool) -> None:
    console = Console()

    def red(line: str) -> None:
        console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)

    for shard, problems in verdict.problems.items():
        for problem in problems:
            red(f"shard {shard}: {problem}")
    for path in verdict.stray:
        red(f"{path}: belongs to no done shard; `label` writes it again, or it may be deleted")
    if verdict.failed:
        red(f"{len(verdict.failed)} shards failed ({', '.join(verdict.failed[:5])} …); `diffseg status` tells why")
    if verdict.missing:
        red(f"{verdict.missing} shards have no record; run the same `diffseg label` again")
    if verdict.problems:
        names = ", ".join(verdict.problems)
        how = (
            "run the same `diffseg label` again" if redone else "`diffseg verify --redo`, then the same `diffseg label`"
        )
        console.print(f"to be labelled again ({how}): {names}", markup=False, highlight=False, soft_wrap=True)
    said = "all as committed" if verdict.is_whole else "not as it should be"
    console.print(f"{verdict.shards} shards, {verdict.rows} rows, {verdict.files} files: {said}", highlight=False)


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg verify`; exit code 0 when all is as committed, 1 when something is not, 2 if refused."""
    command = parsed(VerifyCommand, argv, "verify", __doc__)
    return guarded(lambda: _verify(command))


if __name__ == "__main__":
    sys.exit(main())
