"""Segments by recursive normalised cuts of the aggregated attention (Shi and Malik, 2000), in place of merging.

A row of attention says where a random walk that is at a position goes next (Ivanova et al., "Diffusing, Walking and
Cutting", 2024). The graph's edges are the flow between two positions in k such steps; DiffCut cuts features instead.
Axes: P positions, n those of the part of the graph that is to be cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

DENSE = 64
"""Graphs of up to so many positions are solved whole; larger ones by Lanczos' method."""

TOLERANCE = 1e-4
"""Of the eigenvalue. The exact search for the best cut along the eigenvector comes after it."""

LEAST_DEGREE = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """cost: the largest normalised cut of this part of the graph and of all parts that it came from, 0 to 2.

    first, second: int64 positions on either side.
    """

    cost: float
    first: np.ndarray
    second: np.ndarray


def walk_flow(attention: torch.Tensor, steps: int) -> np.ndarray:
    """float32 [P, P], symmetric: ½(Aᵏ + Aᵏᵀ) of attention [P, P], how much walks of k steps join two positions."""
    walked = torch.linalg.matrix_power(attention, steps)
    return ((walked + walked.T) / 2).cpu().numpy()


def cut_tree(affinity: np.ndarray, largest: float) -> list[Cut]:
    """All cuts of cost below `largest`, each behind the one that its part of the graph came from.

    affinity: float32 [P, P], symmetric, ≥ 0. That of any smaller threshold is found in the same list: `labels_at`.
    """
    cuts: list[Cut] = []
    waiting = [(np.arange(len(affinity)), 0.0)]
    while waiting:
        part, cost_so_far = waiting.pop(0)
        if len(part) < 2:
            continue
        first, second, cost = best_cut(affinity[np.ix_(part, part)])
        cost = max(cost, cost_so_far)
        if cost < largest:
            cuts.append(Cut(cost=cost, first=part[first], second=part[second]))
            waiting += [(cuts[-1].first, cost), (cuts[-1].second, cost)]
    return cuts


def labels_at(cuts: list[Cut], threshold: float, positions: int) -> np.ndarray:
    """int64 [P], 0 to K − 1: the parts once every cut of a cost below the threshold has been made."""
    labels = np.zeros(positions, dtype=np.int64)
    made = (cut for cut in cuts if cut.cost < threshold)
    for number, cut in enumerate(made, start=1):
        labels[cut.second] = number
    return labels


def best_cut(affinity: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Positions on either side, ascending, and cost of the best of the n − 1 cuts in the order of the eigenvector.

    The normalised cut, 0 to 2, is the share of its edges that each side loses: cut / volume + cut / other volume.
    """
    degrees = np.maximum(affinity.sum(axis=1, dtype=np.float64), LEAST_DEGREE)
    order = np.argsort(_second_eigenvector(affinity, degrees), kind="stable")
    ordered = affinity[np.ix_(order, order)]
    to_earlier = np.tril(ordered, -1).sum(axis=1, dtype=np.float64)
    within = np.cumsum(2 * to_earlier + np.diag(ordered))
    volumes = np.cumsum(degrees[order])
    cuts = np.maximum(volumes - within, 0)[:-1]
    costs = cuts / volumes[:-1] + cuts / np.maximum(volumes[-1] - volumes[:-1], LEAST_DEGREE)
    best = int(costs.argmin())
    return np.sort(order[: best + 1]), np.sort(order[best + 1 :]), float(costs[best])


def _second_eigenvector(affinity: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """The relaxed solution: the second eigenvector of D⁻¹W. Its sign is that of its largest element made positive."""
    scale = (1 / np.sqrt(degrees)).astype(np.float32)
    trivial = (np.sqrt(degrees) / np.linalg.norm(np.sqrt(degrees))).astype(np.float32)

    def product(vector: np.ndarray) -> np.ndarray:
        """With D⁻½WD⁻½, whose eigenvalues are within ±1, moved up by one, and without the first, which cuts nothing."""
        other = vector.ravel() - trivial * (trivial @ vector.ravel())
        moved = scale * (affinity @ (scale * other)) + other
        return moved - trivial * (trivial @ moved)

    count = len(degrees)
    if count <= DENSE:
        _, vectors = np.linalg.eigh(np.stack([product(unit) for unit in np.eye(count, dtype=np.float32)]))
        vector = vectors[:, -1]
    else:
        operator = LinearOperator((count, count), matvec=product, dtype=np.float32)
        start = np.random.default_rng(0).standard_normal(count).astype(np.float32)
        _, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=TOLERANCE)
        vector = vectors[:, 0]
    vector = vector * scale
    return vector if vector[np.abs(vector).argmax()] > 0 else -vector
