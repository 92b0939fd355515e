"""Makes new labels from the levels and the name scores of a run (`pipeline.executor.rewrite`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.console import Console

from diffseg.levels import Cut
from diffseg.segmentation import BACKGROUND
from pipeline.executor.rewrite import RewriteSettings, RewriteWorker, open_pair, rewrite_run
from pipeline.executor.summary import RunSummary
from pipeline.output.levels import RunCut, cut_values
from pipeline.output.manifest import require_manifest
from pipeline.output.rows import class_id
from pipeline.readers.names import NameSettings
from pipeline.settings import RunSettings
from pipeline.storage import SourceError


@dataclass(frozen=True, kw_only=True)
class RecutSettings(RewriteSettings):
    """What determines the labels of a run that was cut again or whose names got a threshold.

    Its rows have no further columns.

    Attributes:
        run_cut: The cut; None keeps the label maps of the run.
        background_below: Names with a lower score become background, 0 to 1.
    """

    run_cut: RunCut | None
    background_below: float = 0.0
    name: ClassVar[str] = "recut"

    def change(self) -> dict[str, Any]:
        """Return the cut and the threshold."""
        cut = {} if self.run_cut is None else dataclasses.asdict(self.run_cut.cut)
        return cut | ({"background_below": self.background_below} if self.background_below else {})

    def columns(self, columns: Sequence[str]) -> Sequence[str]:
        """Return the columns that must be read to get these columns of a cut."""
        needed = columns if self.run_cut is None else self.run_cut.columns(columns)
        return sorted({*needed, "status", "segments"})

    def values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the label map of a row at the cut, and what depends on it."""
        values = {} if self.run_cut is None else cut_values(row, self.run_cut)
        if self.background_below:
            values["segments"] = [self._named(segment) for segment in values.get("segments", row["segments"])]
        return values

    def _named(self, segment: Mapping[str, Any]) -> dict[str, Any]:
        """Return a segment, which becomes background if the score of its name is too low."""
        name, score = segment["name"], segment["name_score"]
        if name is None or name == BACKGROUND or score is None or score >= self.background_below:
            return dict(segment)
        vocabulary = self.origin.settings.get("naming", {}).get("names", ())
        return {**segment, "name": BACKGROUND, "class_id": class_id(BACKGROUND, vocabulary)}


def recut_run(
    out: str,
    new: str,
    cut: Cut | None,
    *,
    run: RunSettings,
    background_below: float = 0.0,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    console: Console | None = None,
    worker_class: Callable[[], RewriteWorker] = RewriteWorker,
) -> RunSummary:
    """Cut all rows of a run again, into a new run. Doing so again continues where it was stopped.

    Args:
        out: OUT of the run, a folder or URL.
        new: Folder or URL of the new run.
        cut: The level to take; None keeps the label maps.
        run: How the run is carried out.
        background_below: Names with a lower score become background, 0 to 1.
        format: Formats to write, as in `LabelSettings`; None for those of OUT.
        options: Options for the stores of both.
        console: Where to show the progress; None shows nothing.
        worker_class: Class of the workers.

    Returns:
        What NEW holds after the run.

    Raises:
        SourceError: OUT has no levels or no names, or no shard of it is done.
        RunRefused: NEW belongs to another run.
        RunFailed: No worker starts, a store is unreachable, or another run has taken over NEW.
        OSError: A request of the driver to a store failed.
    """
    source, target = open_pair(out, new, options, run)
    origin = require_manifest(source)
    formats: Any = origin.settings.get("format", "parquet") if format is None else format
    if background_below and not NameSettings(**origin.settings.get("naming", {})):
        raise SourceError(f"{source.redacted}: its segments have no names, so no name can become background")
    run_cut = None if cut is None else RunCut.of(cut, origin, source.redacted)
    settings = RecutSettings(origin=origin, run_cut=run_cut, background_below=background_below, format=formats)
    return rewrite_run(source, target, settings, run=run, console=console, worker_class=worker_class)
