"""Pixels counted by class over many images, from which the scores of a whole data set follow.

Axes: N images, C classes, P predicted ids, K segments, W predicted ids from 0 to the largest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from diffseg.scoring.overlap import Overlap

__all__ = ["confusions", "counts_by_class", "scores_of_counts", "scores_of_dataset_matching"]


def counts_by_class(tables: Sequence[Overlap], classes: Sequence[int], *, background: bool = False) -> np.ndarray:
    """Return true positives, false positives and false negatives of each class, float64 [N, 3 * C].

    As in google/diffseg, the table of an image has a row for every class of the dataset and a column for every id from
    0 to its largest, also for ids that do not occur. Segments that no class of the image takes are therefore assigned
    to absent classes, as false positives of these, unless a column without pixels is assigned instead. Which absent
    class takes which column is a tie, decided by the order of both.

    Args:
        tables: Overlap of each image.
        classes: Ids of the classes, ascending.
        background: Join the segments that no class but the last takes into one before the matching, as DiffCut does.
    """
    counts = np.zeros((len(tables), 3, len(classes)))
    for number, table in enumerate(tables):
        class_index = np.searchsorted(classes, table.truth_ids)
        width = int(table.segment_ids[-1]) + 1 if len(table.segment_ids) else 0
        shared = np.zeros((len(classes), max(len(classes), width)))
        shared[np.ix_(class_index, table.segment_ids)] = table.shared
        area = np.zeros(len(classes))
        area[class_index] = table.truth_area
        if background:
            shared = _with_background(shared, table.segment_ids)
        rows, columns = linear_sum_assignment(shared, maximize=True)
        hit = shared[rows, columns]
        counts[number] = hit, shared[:, columns].sum(0) - hit, area - hit
    return counts.reshape(len(tables), -1)


def _with_background(shared: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
    """Join the segments that no class but the last takes into one, with the next free id.

    As in DiffCut, a class keeps its column if it shares pixels with any of the columns that the classes take.

    Args:
        shared: Pixels of each class and predicted id, float64 [C, W]; the last class is background.
        segment_ids: Ids of the segments that occur, int [K], ascending.
    """
    if not len(segment_ids):
        return shared
    free = int(segment_ids[-1]) + 1
    objects = shared[:-1, : max(len(shared) - 1, free)]
    _, columns = linear_sum_assignment(objects, maximize=True)
    kept = columns[objects[:, columns].max(axis=1, initial=0) > 0]
    joined = np.setdiff1d(segment_ids, kept)
    if not len(joined):
        return shared
    result = np.zeros((len(shared), max(len(shared), free + 1)))
    result[:, : shared.shape[1]] = shared
    result[:, free] = shared[:, joined].sum(1)
    result[:, joined] = 0
    return result


def scores_of_counts(sums: np.ndarray) -> np.ndarray:
    """Return accuracy and mIoU; a class that neither occurs nor was wrongly predicted has no IoU and is left out."""
    hit, wrong, missed = sums.reshape(3, -1)
    union = hit + wrong + missed
    present = union > 0
    return np.array([hit.sum() / (hit + missed).sum(), (hit[present] / union[present]).mean()])


def confusions(tables: Sequence[Overlap], classes: Sequence[int]) -> sparse.csr_array:
    """Return the pixels of each class and those that it shares with each predicted id, sparse [N, C + C * P]."""
    ids = np.unique(np.concatenate([table.segment_ids for table in tables]))
    rows, columns, values = [], [], []
    for number, table in enumerate(tables):
        class_index = np.searchsorted(classes, table.truth_ids)
        pairs = len(classes) + class_index[:, None] * len(ids) + np.searchsorted(ids, table.segment_ids)
        columns += [class_index, pairs.ravel()]
        values += [table.truth_area, table.shared.ravel()]
        rows.append(np.full(len(class_index) + pairs.size, number))
    shape = (len(tables), len(classes) * (1 + len(ids)))
    value, row, column = (np.concatenate(parts) for parts in (values, rows, columns))
    return sparse.csr_array((value.astype(np.float64), (row, column)), shape=shape)


def scores_of_dataset_matching(sums: np.ndarray, count: int) -> np.ndarray:
    """Return accuracy and mIoU with one predicted id for each class.

    As in PiCIE and STEGO, a class that does not occur counts as 0 if the id that it takes has pixels, and is left out
    if not.
    """
    area, shared = sums[:count], sums[count:].reshape(count, -1)
    shared = np.pad(shared, ((0, 0), (0, max(0, count - shared.shape[1]))))
    columns, rows = linear_sum_assignment(shared.T, maximize=True)  # transposed as in STEGO, where ties depend on it
    hit = shared[rows, columns]
    union = area[rows] + shared[:, columns].sum(0) - hit
    present = union > 0
    return np.array([hit.sum() / area.sum(), (hit[present] / union[present]).mean()])
