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

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from jobs.common import guarded, parsed
from jobs.rewriting import RewriteFlags, rewrite


@dataclass(frozen=True, kw_only=True)
class NameCommand(RewriteFlags):
    """The flags of `diffseg name`."""

    references: Annotated[str, tyro.conf.arg(metavar="STATE")]
    """Folder or URL that `diffseg fit references` wrote."""
    own_names: bool = False
    """Give a segment only a name that the labels or the caption of its sample list, read as by `diffseg fit
    references`."""
    background_below: float = 0.0
    """Segments whose cosine with the reference of their name is lower are background, 0 to 1."""


def _name(command: NameCommand) -> int:
    from pipeline.executor.rename import rename_run  # imported here to keep --help fast: ray takes seconds

    return rewrite(
        command,
        rename_run,
        command.references,
        own_names=command.own_names,
        background_below=command.background_below,
    )


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg name` and return its exit code."""
    return guarded(lambda: _name(parsed(NameCommand, argv, "name", __doc__)))


if __name__ == "__main__":
    sys.exit(main())
