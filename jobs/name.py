"""Name the segments of a run by references that were learned from many images, without a model.

OUT must have been labelled with --features, and STATE is what `diffseg fit references` wrote. NEW becomes a run of its
own, which every command reads; its rows are those of OUT with other names. After a stop or a kill at any moment, the
same command continues.

Exit codes:
  0: every shard of OUT is named.
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
from pipeline.executor.logs import log_json
from pipeline.settings import RunSettings


@dataclass(frozen=True, kw_only=True)
class NameCommand:
    """The flags of `diffseg name`."""

    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder or URL of a run with features."""
    new: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NEW")]
    """Folder or URL of the new run."""
    references: Annotated[str, tyro.conf.arg(metavar="STATE")]
    """Folder or URL that `diffseg fit references` wrote."""
    own_names: bool = False
    """Give a segment only a name that the labels or the caption of its sample list, read as by `diffseg fit
    references`."""
    background_below: float = 0.0
    """Segments whose cosine with the reference of their name is lower are background, 0 to 1."""
    format: Literal["parquet", "parquet,webdataset"] | None = None
    """Formats to write; default: those of OUT. Source images are not copied."""
    storage_options: str = ""
    """JSON object with options for fsspec, such as credentials or an endpoint, for OUT, NEW and STATE."""
    json: bool = False
    """Print the summary as JSON."""
    run: Annotated[RunSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=RunSettings)


def _name(command: NameCommand) -> int:
    from pipeline.executor.rename import rename_run  # imported here to keep --help fast: ray takes seconds

    console = CleanConsole(stderr=command.json)
    if command.run.log_format == "json":
        log_json()
    summary = rename_run(
        command.out,
        command.new,
        command.references,
        run=command.run,
        own_names=command.own_names,
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
    """Run `diffseg name` and return its exit code."""
    return guarded(lambda: _name(parsed(NameCommand, argv, "name", __doc__)))


if __name__ == "__main__":
    sys.exit(main())
