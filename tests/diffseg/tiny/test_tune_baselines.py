"""The search for the best settings of the baselines."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from diffseg.scoring.baselines import BASELINES, Grid
from diffseg.tiny.evaluation.tune_baselines import CANDIDATES, coordinate_ascent, validation_score
from diffseg.tiny.scenes.scenes import Scene


@dataclass(frozen=True, kw_only=True)
class Point:
    x: float = 2.5
    y: int = 1


def test_the_search_ends_where_no_change_of_a_single_field_helps() -> None:
    scored = []

    def score(point: Point) -> float:
        scored.append(point)
        return -((point.x - 7) ** 2) - (point.y - point.x) ** 2

    best, height = coordinate_ascent(Point(), {"x": range(10), "y": range(10)}, score)
    assert len(set(scored)) == len(scored), "each point is scored once"
    assert height > -20
    assert all(score(Point(x=best.x + dx, y=best.y + dy)) <= height for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)))


def test_the_start_is_returned_if_nothing_is_better() -> None:
    assert coordinate_ascent(Point(), {"x": (1, 2, 3), "y": (0, 1, 2)}, lambda point: -abs(point.x - 2.5)) == (
        Point(),
        0,
    )


def test_the_candidates_of_each_field_enclose_its_default() -> None:
    for name, candidates in CANDIDATES.items():
        if name not in BASELINES:
            continue
        assert set(candidates) <= {field.name for field in fields(BASELINES[name])}
        for field, values in candidates.items():
            assert min(values) <= getattr(BASELINES[name], field) <= max(values)
            assert list(values) == sorted(values)


def test_the_score_is_the_mean_of_covering_and_best_iou() -> None:
    ground_truth = np.zeros((8, 8), np.uint16)
    ground_truth[:, 6:] = 1
    scene = Scene(np.zeros((8, 8, 3), np.uint8), ground_truth)
    # One segment: IoU .75 with the larger region, .25 with the smaller.
    expected = (0.75 * 0.75 + 0.25 * 0.25 + (0.75 + 0.25) / 2) / 2
    assert validation_score(Grid(rows=1, columns=1), [scene]) == expected
