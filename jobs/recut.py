"""Make new labels from the levels of a run, without a model: coarser, finer, or chosen per image.

For another level, OUT must have been labelled with --levels; for --background-below, with names. NEW becomes a run of
its own, which every command reads; its rows are those of OUT, with the label maps of another level or with some names
replaced. After a stop or a kill at any moment, the same command continues.

Exit codes:
  0: every shard of OUT is cut.
  1: some shards failed.
  2: wrong usage, or refused.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from jobs.common import OK, SOME_FAILED, guarded, parsed, storage_options
from jobs.label import print_summary
from jobs.printing import CleanConsole, print_json
from jobs.run_flags import CutFlags
from pipeline.executor.logs import log_json
from pipeline.settings import RunSettings


@dataclass(frozen=True, kw_only=True)
class RecutCommand(CutFlags):
    """The flags of `diffseg recut`."""

    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder or URL of a run."""
    new: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NEW")]
    """Folder or URL of the new run."""
    background_below: float = 0.0
    """Segments whose name has a lower score become background, 0 to 1, as with `diffseg label --background-below`."""
    format: Literal["parquet", "parquet,webdataset"] | None = None
    """Formats to write; default: those of OUT. Source images are not copied."""
    storage_options: str = ""
    """JSON object with options for fsspec, such as credentials or an endpoint, for OUT and NEW."""
    json: bool = False
    """Print the summary as JSON."""
    run: Annotated[RunSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=RunSettings)


def _recut(command: RecutCommand) -> int:
    from pipeline.executor.recut import recut_run  # imported here to keep --help fast: ray takes seconds

    cut = command.cut()
    if not 0 <= command.background_below <= 1:
        raise ValueError(f"--background-below is {command.background_below}; expected 0 to 1")
    if cut is None and not command.background_below:
        raise ValueError("give one of --tau, --segments and --stable (which level to take), or --background-below")
    console = CleanConsole(stderr=command.json)
    if command.run.log_format == "json":
        log_json()
    summary = recut_run(
        command.out,
        command.new,
        cut,
        run=command.run,
        background_below=command.background_below,
        format=command.format,
        options=storage_options(command.storage_options),
        console=None if command.run.log_format == "json" else console,
    )
    if command.json:
        print_json(dataclasses.asdict(summary))
    else:
        print_summary(console, summary)
    return SOME_FAILED if summary.failed else OK


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg recut` and return its exit code."""
    return guarded(lambda: _recut(parsed(RecutCommand, argv, "recut", __doc__)))


if __name__ == "__main__":
    sys.exit(main())
