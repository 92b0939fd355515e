"""Render index.html: the summary of the run, and the frame of the gallery."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.output.commit import Commit, LabelShard, totals
from pipeline.output.manifest import Manifest
from pipeline.output.selection import RowSelection
from pipeline.report.charts import distributions, throughput_chart
from pipeline.report.row_statistics import RowStatistics
from pipeline.report.scores import Evaluations
from pipeline.report.settings_table import changed_settings, label_command
from pipeline.report.templates import page_template
from pipeline.report.throughput import throughput
from pipeline.storage import redact

MAX_FAILED_SHARDS = 200
"""Failed shards that are listed."""
MAX_REASONS_SHOWN = 50
"""Reasons of failed rows that are listed."""
MAX_NAMES_SHOWN = 50
"""Names that are listed, those with the most pixels first."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What index.html is rendered from.

    Attributes:
        out: OUT of the run, without credentials.
        manifest: Manifest of the run.
        commits: Commit records of done shards by name.
        failed: Reason of each failed shard by name.
        images_missing: Why the source images are missing; empty if they are not.
        statistics: Statistics over all rows.
        data: Folder of the data files, relative to index.html.
        scripts: Names of the scripts in it, in the order in which they are loaded.
        shown: Number of rows in the gallery.
        names: Name and colour of each name in the gallery.
        evaluations: Scores of the images.
        selection: Rows that the page is about.
    """

    out: str
    manifest: Manifest
    commits: Mapping[LabelShard, Commit]
    failed: Mapping[str, str]
    images_missing: str
    statistics: RowStatistics
    data: str
    scripts: Sequence[str]
    shown: int
    names: Sequence[tuple[str, str]]
    evaluations: Evaluations
    selection: RowSelection


def render(page: Page) -> str:
    """Return index.html. Keys, errors and names are escaped, so they appear as text whatever they contain."""
    statistics, manifest = page.statistics, page.manifest
    over_time = throughput(page.commits.values())
    images = statistics.statuses.total()
    labelled = statistics.statuses["ok"]
    _, seconds = totals(page.commits.values())
    return page_template("index.html").render(
        page=page,
        source=redact(manifest.source),
        images=images,
        labelled=labelled,
        missing=max(0, manifest.shards - len(page.commits) - len(page.failed)),
        over_time=over_time,
        mean_segments=_mean(sum(n * count for n, count in statistics.segments.items()), labelled),
        mean_confidence=_mean(statistics.confidence_sum, labelled),
        charts=[
            *distributions(statistics),
            *([throughput_chart(over_time)] if over_time and len(over_time.rates) > 1 else []),
        ],
        names=_names(statistics, dict(page.names)),
        names_left=max(0, len(statistics.names) - MAX_NAMES_SHOWN),
        steps=_steps(seconds, sum(commit.rows for commit in page.commits.values())),
        selected=_selected(page.selection),
        statuses=statistics.statuses.most_common(),
        reasons=statistics.reasons.most_common(MAX_REASONS_SHOWN),
        reasons_left=max(0, len(statistics.reasons) - MAX_REASONS_SHOWN),
        failed_shards=sorted(page.failed.items())[:MAX_FAILED_SHARDS],
        changed=[
            (name, _text(value), _text(default)) for name, value, default in changed_settings(manifest.settings)[1]
        ],
        preset=changed_settings(manifest.settings)[0],
        command=label_command(manifest, page.out),
        tables=_tables(manifest),
    )


def _selected(selection: RowSelection) -> str:
    """Return which rows the page is about; "" for all of them."""
    keys = "" if selection.keys is None else f"{len(selection.keys):,} keys"
    kept = "" if selection.kept is None else "kept by diffseg filter"
    return " and ".join(part for part in (selection.where, keys, kept) if part)


def _mean(total: float, count: int) -> float:
    return total / count if count else 0.0


def _names(statistics: RowStatistics, colours: Mapping[str, str]) -> list[tuple[str, str, int, int, float, float]]:
    """Return name, colour, images, segments, share of all pixels, and that share relative to the largest one.

    The names are sorted by their share of the pixels. Names that only rows outside the gallery have get no colour.
    """
    shares = {name: count / statistics.pixels for name, count in statistics.name_pixels.most_common(MAX_NAMES_SHOWN)}
    largest = max(shares.values(), default=0.0) or 1.0
    return [
        (name, colours.get(name, ""), statistics.name_images[name], statistics.names[name], share, share / largest)
        for name, share in shares.items()
    ]


def _steps(seconds: Mapping[str, float], images: int) -> list[tuple[str, float, float]]:
    """Return name, milliseconds per image and share of the longest step for each step, the longest first.

    `total` is left out, because it is wall time.
    """
    steps = {name: value for name, value in seconds.items() if name != "total"}
    longest = max(steps.values(), default=0.0)
    ordered = sorted(steps.items(), key=lambda item: -item[1])
    return [(name, 1000 * value / images, value / longest) for name, value in ordered if images and longest]


def _tables(manifest: Manifest) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the contents of run.json as titled tables of name and value."""
    run = {"source": manifest.source, "fingerprint": manifest.fingerprint, "model_sha256": manifest.model_sha256}
    sections = {
        "Run": run | {"shards": manifest.shards},
        "Settings": manifest.settings,
        "Settings resolved from the checkpoint": manifest.resolved,
        "Environment and versions": manifest.environment,
    }
    return [(title, list(_flatten(values))) for title, values in sections.items() if values]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            # The settings of the method, one of which is "method", have names of their own, as on the command line.
            yield from _flatten(value, "" if name == "method" else f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", _text(value)


def _text(value: Any) -> str:
    return redact(", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
