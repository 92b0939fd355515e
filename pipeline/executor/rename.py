"""Names the segments of a run by references, without a model (`pipeline.executor.rewrite`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from rich.console import Console

from diffseg.reference_state import References, ReferencesError
from pipeline.errors import RunRefused
from pipeline.executor.rewrite import RewriteSettings, RewriteWorker, open_pair, rewrite_run
from pipeline.executor.summary import RunSummary
from pipeline.output.manifest import Manifest, require_manifest
from pipeline.output.rows import FEATURE_COLUMNS, class_id
from pipeline.readers.names import NameReader, NamesError, NameSettings
from pipeline.readers.samples import Sample
from pipeline.references.state import binding, load_references
from pipeline.references.worker import stored_features
from pipeline.settings import RunSettings
from pipeline.storage import SourceError


@dataclass(frozen=True, kw_only=True)
class RenameSettings(RewriteSettings):
    """What determines the names of a run that was named by references.

    Attributes:
        learned: The references.
        own_names: Whether a segment gets only a name that the labels or the caption of its sample list.
        background_below: Segments with a lower score are background, 0 to 1.
    """

    learned: References
    own_names: bool = False
    background_below: float = 0.0
    name: ClassVar[str] = "named"
    keeps: ClassVar[tuple[str, ...]] = ("levels", "features", "quality")

    def change(self) -> dict[str, Any]:
        """Return the digest of the references, and how they are used."""
        used = {"own_names": self.own_names, "background_below": self.background_below}
        return {"references": self.learned.sha256} | used

    def replaced(self) -> dict[str, Any]:
        """Return the names of the references as the run's vocabulary, which class ids refer to."""
        naming = self.origin.settings.get("naming", {})
        fields = {name: value for name, value in naming.items() if name in ("labels_field", "caption_field")}
        return {"naming": fields | {"names": list(self.learned.names)}}

    def columns(self, columns: Sequence[str]) -> Sequence[str]:
        """Return the columns that must be read."""
        return sorted({*columns, "key", "index", "meta", "segments", "n_segments", FEATURE_COLUMNS[1]})

    def values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the segments of a row with their names by the references."""
        features, own = stored_features(row), self._own_names(row)
        if own is None:
            given: list[tuple[str | None, float]] = [(None, 0.0)] * len(features)
        else:
            given = self.learned.name_segments(features, own, background_below=self.background_below)
        segments = [
            {**segment, "name": name, "name_score": score, "class_id": class_id(name, self.learned.names)}
            for segment, (name, score) in zip(row["segments"], given, strict=True)
        ]
        return {"segments": segments}

    def _own_names(self, row: Mapping[str, Any]) -> Sequence[str] | None:
        """Return the names that segments of a row may get; None if the row does not say."""
        if not self.own_names:
            return self.learned.names
        sample = Sample(index=row["index"], key=row["key"], image=None, meta=row["meta"])
        try:
            return self._reader(sample).names
        except NamesError:
            return None

    @cached_property
    def _reader(self) -> NameReader:
        """What reads names from samples, as when the references were learned."""
        return NameReader(NameSettings(**self.learned.settings["naming"]))


def rename_run(
    out: str,
    new: str,
    references: str,
    *,
    run: RunSettings,
    own_names: bool = False,
    background_below: float = 0.0,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    console: Console | None = None,
    worker_class: Callable[[], RewriteWorker] = RewriteWorker,
) -> RunSummary:
    """Name all segments of a run by references, into a new run. Doing so again continues where it was stopped.

    Args:
        out: OUT of a run with features, a folder or URL.
        new: Folder or URL of the new run.
        references: STATE of `diffseg fit references`, a folder or URL.
        run: How the run is carried out.
        own_names: Whether a segment gets only a name that the labels or the caption of its sample list.
        background_below: Segments with a lower score are background, 0 to 1.
        format: Formats to write, as in `LabelSettings`; None for those of OUT.
        options: Options for the stores.
        console: Where to show the progress; None shows nothing.
        worker_class: Class of the workers.

    Returns:
        What NEW holds after the run.

    Raises:
        SourceError: OUT has no features, `references` holds no references, or no shard of OUT is done.
        RunRefused: NEW belongs to another run, or the references are of another model.
        RunFailed: No worker starts, a store is unreachable, or another run has taken over NEW.
        OSError: A request of the driver to a store failed.
    """
    source, target = open_pair(out, new, options, run)
    origin, learned = require_manifest(source), load_references(source.at(references))
    _check_bound(learned, origin, source.redacted)
    formats: Any = origin.settings.get("format", "parquet") if format is None else format
    settings = RenameSettings(
        origin=origin, learned=learned, own_names=own_names, background_below=background_below, format=formats
    )
    naming = NameSettings(**learned.settings["naming"])
    if own_names and naming.labels_field is None and naming.caption_field is None:
        raise ValueError("own_names: the references were learned without a field that lists the names of an image")
    return rewrite_run(source, target, settings, run=run, console=console, worker_class=worker_class)


def _check_bound(references: References, origin: Manifest, out: str) -> None:
    """Check that the features of a run are of the same passes as those that the references were learned from."""
    try:
        now = binding(origin)
    except ValueError as error:
        raise SourceError(f"{out}: {error}") from None
    try:
        references.check_fits(now)
    except ReferencesError as error:
        raise RunRefused(f"{out}: {error}") from None
