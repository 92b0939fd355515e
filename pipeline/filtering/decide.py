"""Ranks the rows of a run within their classes, and decides which are kept."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

from pipeline.filtering.settings import KeepSettings
from pipeline.output.keep import SCHEMA
from pipeline.storage import SourceError


def decide(scores: pa.Table, settings: KeepSettings) -> pa.Table:
    """Return the scores with two further columns: the rank of each row within its class, and whether it is kept.

    Rows without the score that they are ranked by come last in their class, and are never kept. Rows with equal scores
    keep their order.

    Args:
        scores: The columns of `SCORE_FIELDS`.
        settings: The share of rows that is kept, the score that ranks them, and the minima.

    Raises:
        SourceError: Rows are ranked by agree_iou, and no row has it.
    """
    columns = {name: _values(scores, name) for name in ("cv_iou", "confidence", "agree_iou")}
    if settings.by == "agree_iou" and np.isnan(columns["agree_iou"]).all():
        raise SourceError("--by agree_iou: no row has this score; only runs of `diffseg generate` have it")
    classes = np.array([name or "" for name in scores["class"].to_pylist()], object)
    rank, count = np.zeros(len(classes), np.int32), np.zeros(len(classes), np.int64)
    known = np.ones(len(classes), bool)
    for name in sorted(set(classes.tolist())):
        rows = np.flatnonzero(classes == name)
        if settings.by == "both":
            parts = [columns[part][rows] for part in ("cv_iou", "confidence")]
            score = -np.mean([_rank(part) for part in parts], axis=0)
            score[np.isnan(parts).any(axis=0)] = np.nan
        else:
            score = columns[settings.by][rows]
        rank[rows], count[rows], known[rows] = _rank(score), len(rows), ~np.isnan(score)
    keep = known & (rank <= np.ceil(np.round(settings.keep * count, 9)))
    for name, smallest in (
        ("cv_iou", settings.min_cv_iou),
        ("confidence", settings.min_confidence),
        ("agree_iou", settings.min_agree_iou),
    ):
        if smallest > 0:
            keep &= columns[name] >= np.float32(smallest)
    decided = scores.append_column("rank", pa.array(rank)).append_column("keep", pa.array(keep))
    return decided.cast(SCHEMA)


def _values(scores: pa.Table, name: str) -> np.ndarray:
    """Return a column as float64 [N], NaN where it is null."""
    return np.array([math.nan if value is None else value for value in scores[name].to_pylist()], np.float64)


def _rank(score: np.ndarray) -> np.ndarray:
    """Return the rank of each score, int32 from 1 for the highest; NaN comes last."""
    rank = np.empty(len(score), np.int32)
    rank[np.argsort(-score, kind="stable")] = np.arange(1, len(score) + 1)  # NaN sorts last
    return rank
