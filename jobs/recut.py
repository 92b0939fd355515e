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

import sys
from dataclasses import dataclass

from jobs.common import guarded, parsed
from jobs.rewriting import RewriteFlags, rewrite
from jobs.run_flags import CutFlags


@dataclass(frozen=True, kw_only=True)
class RecutCommand(CutFlags, RewriteFlags):
    """The flags of `diffseg recut`."""

    background_below: float = 0.0
    """Segments whose name has a lower score become background, 0 to 1, as with `diffseg label --background-below`."""


def _recut(command: RecutCommand) -> int:
    from pipeline.executor.recut import recut_run  # imported here to keep --help fast: ray takes seconds

    cut = command.cut()
    if not 0 <= command.background_below <= 1:
        raise ValueError(f"--background-below is {command.background_below}; expected 0 to 1")
    if cut is None and not command.background_below:
        raise ValueError("give one of --tau, --segments and --stable (which level to take), or --background-below")
    return rewrite(command, recut_run, cut, background_below=command.background_below)


def main(argv: list[str] | None = None) -> int:
    """Run `diffseg recut` and return its exit code."""
    return guarded(lambda: _recut(parsed(RecutCommand, argv, "recut", __doc__)))


if __name__ == "__main__":
    sys.exit(main())
