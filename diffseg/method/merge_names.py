"""Merge the segments of an image that have the same name into one, as the demonstration of google/diffseg does.

Axes: H and W pixels, K proposals.
"""

from __future__ import annotations

import numpy as np

from diffseg.method.decision import Stat
from diffseg.method.naming import NO_NAME


def merge_same_names(labels: np.ndarray, stats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give segments of one name the label of the first of them, and combine their statistics.

    Pixels keep their margins, and the name's score is the mean over the pixels. Segments of background are merged too;
    those without a name stay apart.

    Args:
        labels: int16 [H, W], see `diffseg.method.decision.Decision`.
        stats: int64 [8, K], see `diffseg.method.decision.Stat`.

    Returns:
        The new labels and statistics, of the same types.
    """
    of_segments = stats[:, stats[Stat.AREA] > 0]
    first_of_name: dict[int, int] = {}
    members: list[list[int]] = []
    for segment, name in enumerate(of_segments[Stat.NAME].tolist()):
        if name == NO_NAME or name not in first_of_name:
            first_of_name[name] = len(members)
            members.append([segment])
        else:
            members[first_of_name[name]].append(segment)
    label_of = np.empty(of_segments.shape[1], dtype=labels.dtype)
    for label, group in enumerate(members):
        label_of[group] = label
    merged = np.stack([_combined(of_segments[:, group]) for group in members], axis=1)
    return label_of[labels], merged


def _combined(stats: np.ndarray) -> np.ndarray:
    """Return the statistics of the union of segments, int64 [8], from theirs, int64 [8, n]."""
    if stats.shape[1] == 1:
        return stats[:, 0]
    area, scores = stats[Stat.AREA], stats[Stat.NAME_SCORE]
    combined = stats[:, 0].copy()
    for row in (Stat.AREA, Stat.MARGIN):
        combined[row] = stats[row].sum()
    for row in (Stat.TOP, Stat.LEFT):
        combined[row] = stats[row].min()
    for row in (Stat.BOTTOM, Stat.RIGHT):
        combined[row] = stats[row].max()
    combined[Stat.NAME_SCORE] = (area * scores).sum() // area.sum()
    return combined
