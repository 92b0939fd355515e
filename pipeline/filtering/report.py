"""The report of `diffseg filter`: how many rows are kept, and with what scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.filtering.settings import KeepSettings

PROBLEMS_KEPT = 20
"""Largest number of problems in the report."""


@dataclass(frozen=True, kw_only=True)
class FilterReport:
    """What `diffseg filter` has decided, as in OUT/filter/filter.json.

    Attributes:
        run: Fingerprint of the run.
        labels: Digest of the contents of its label shards.
        scores: Fingerprint of the scores.
        settings: Settings of the folds' networks.
        thresholds: The `KeepSettings` as plain values.
        rows: Number of rows with a label map.
        kept: Number of rows that are kept.
        classes: For each class, the number of its rows and of the kept ones, and the lowest cv_iou of a kept one.
        means: Mean of each score over all rows and over the kept ones; None without values.
        problems: Why rows have no cv_iou; the first `PROBLEMS_KEPT` reasons.
        unscored: How many rows have no cv_iou.
    """

    run: str
    labels: str
    scores: str
    settings: Mapping[str, Any]
    thresholds: Mapping[str, Any]
    rows: int
    kept: int
    classes: Mapping[str, Mapping[str, float | None]]
    means: Mapping[str, Mapping[str, float | None]]
    problems: Sequence[str] = field(default_factory=list)
    unscored: int = 0


def make_report(
    table: pa.Table, about: Mapping[str, Any], thresholds: KeepSettings, problems: Sequence[str]
) -> FilterReport:
    """Return the report of a table.

    Args:
        table: The scores and decisions.
        about: `run`, `labels`, `scores` and `settings` of the report.
        thresholds: The thresholds that the decisions were made by.
        problems: Why rows have no cv_iou, all reasons.
    """
    kept = table.filter(table["keep"])
    classes = {}
    for name in sorted({value or "" for value in table["class"].to_pylist()}):
        of_class = [part.filter(pc.equal(pc.fill_null(part["class"], ""), name)) for part in (table, kept)]
        values = _values(of_class[1], "cv_iou")
        classes[name] = {
            "rows": len(of_class[0]),
            "kept": len(of_class[1]),
            "lowest_cv_iou": float(values.min()) if len(values) else None,
        }
    means = {
        name: {"all": _mean(_values(table, name)), "kept": _mean(_values(kept, name))}
        for name in ("agree_iou", "cv_iou", "confidence", "n_segments")
    }
    return FilterReport(
        **about,
        thresholds=asdict(thresholds),
        rows=len(table),
        kept=len(kept),
        classes=classes,
        means=means,
        problems=list(problems)[:PROBLEMS_KEPT],
        unscored=table["cv_iou"].null_count,
    )


def _values(table: pa.Table, name: str) -> np.ndarray:
    return table[name].drop_null().to_numpy()


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 6) if len(values) else None
