"""Makes new labels from the levels of a run (`pipeline.executor.rewrite`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.console import Console

from diffseg.levels import Cut
from pipeline.executor.rewrite import RewriteSettings, RewriteWorker, open_pair, rewrite_run
from pipeline.executor.summary import RunSummary
from pipeline.output.levels import RunCut, cut_values
from pipeline.output.manifest import require_manifest
from pipeline.settings import RunSettings


@dataclass(frozen=True, kw_only=True)
class RecutSettings(RewriteSettings):
    """What determines the labels of a run that was cut again; its rows have no further columns.

    Attributes:
        run_cut: The cut.
    """

    run_cut: RunCut
    name: ClassVar[str] = "recut"

    def change(self) -> dict[str, Any]:
        """Return the cut."""
        return dataclasses.asdict(self.run_cut.cut)

    def columns(self, columns: Sequence[str]) -> Sequence[str]:
        """Return the columns that must be read to get these columns of a cut."""
        return self.run_cut.columns(columns)

    def values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the label map of a row at the cut, and what depends on it."""
        return cut_values(row, self.run_cut)


def recut_run(
    out: str,
    new: str,
    cut: Cut,
    *,
    run: RunSettings,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    console: Console | None = None,
    worker_class: Callable[[], RewriteWorker] = RewriteWorker,
) -> RunSummary:
    """Cut all rows of a run again, into a new run. Doing so again continues where it was stopped.

    Args:
        out: OUT of the run with levels, a folder or URL.
        new: Folder or URL of the new run.
        cut: The level to take.
        run: How the run is carried out.
        format: Formats to write, as in `LabelSettings`; None for those of OUT.
        options: Options for the stores of both.
        console: Where to show the progress; None shows nothing.
        worker_class: Class of the workers.

    Returns:
        What NEW holds after the run.

    Raises:
        SourceError: OUT has no levels, or no shard of it is done.
        RunRefused: NEW belongs to another run.
        RunFailed: No worker starts, a store is unreachable, or another run has taken over NEW.
        OSError: A request of the driver to a store failed.
    """
    source, target = open_pair(out, new, options, run)
    origin = require_manifest(source)
    formats: Any = origin.settings.get("format", "parquet") if format is None else format
    settings = RecutSettings(origin=origin, run_cut=RunCut.of(cut, origin, source.redacted), format=formats)
    return rewrite_run(source, target, settings, run=run, console=console, worker_class=worker_class)
