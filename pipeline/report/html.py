"""index.html: what is said of a run as a whole, and the frame of the gallery."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.output.commit import Commit, totals
from pipeline.output.manifest import Manifest
from pipeline.report.charts import distributions, throughput_chart
from pipeline.report.facts import Facts
from pipeline.report.throughput import throughput
from pipeline.storage import redact

MOST_FAILED_SHARDS = 200
MOST_REASONS_SHOWN = 50


@dataclass(frozen=True, kw_only=True)
class Page:
    """What index.html is made from. data: its folder of data, relative to it. shown: rows in the gallery."""

    out: str
    manifest: Manifest
    commits: Mapping[str, Commit]
    failed: Mapping[str, str]
    photographs_gone: str
    facts: Facts
    data: str
    shown: int


def render(page: Page) -> str:
    """The text of index.html; whatever keys, errors and names hold is text in it."""
    facts, manifest = page.facts, page.manifest
    over_time = throughput(page.commits.values())
    images = facts.statuses.total()
    labelled = facts.statuses["ok"]
    _, seconds = totals(page.commits.values())
    loader = PackageLoader("pipeline.report", "page")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("index.html").render(
        page=page,
        source=redact(manifest.source),
        images=images,
        labelled=labelled,
        missing=max(0, manifest.shards - len(page.commits) - len(page.failed)),
        over_time=over_time,
        mean_segments=_mean(sum(n * count for n, count in facts.segments.items()), labelled),
        mean_confidence=_mean(facts.confidence_sum, labelled),
        charts=[*distributions(facts), *([throughput_chart(over_time)] if over_time else [])],
        steps=_steps(seconds, images),
        statuses=facts.statuses.most_common(),
        reasons=facts.reasons.most_common(MOST_REASONS_SHOWN),
        reasons_left=max(0, len(facts.reasons) - MOST_REASONS_SHOWN),
        failed_shards=sorted(page.failed.items())[:MOST_FAILED_SHARDS],
        tables=_tables(manifest),
    )


def _mean(total: float, count: int) -> float:
    return total / count if count else 0.0


def _steps(seconds: Mapping[str, float], images: int) -> list[tuple[str, float, float]]:
    """(step, milliseconds an image, share of the longest), the longest first; without `total`, which is wall time."""
    steps = {name: value for name, value in seconds.items() if name != "total"}
    longest = max(steps.values(), default=0.0)
    ordered = sorted(steps.items(), key=lambda item: -item[1])
    return [(name, 1000 * value / images, value / longest) for name, value in ordered if images and longest]


def _tables(manifest: Manifest) -> list[tuple[str, list[tuple[str, str]]]]:
    """run.json as tables of (name, value)."""
    run = {"source": manifest.source, "fingerprint": manifest.fingerprint, "model_sha256": manifest.model_sha256}
    sections = {
        "Run": run | {"shards": manifest.shards},
        "Settings": manifest.settings,
        "What the checkpoint filled in": manifest.resolved,
        "Environment and versions": manifest.environment,
    }
    return [(title, list(_flat(values))) for title, values in sections.items() if values]


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name} ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            yield f"{before}{name}", redact(shown)
