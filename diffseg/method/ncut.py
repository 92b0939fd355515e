"""Segments by recursive normalised cuts of the aggregated attention (Shi and Malik, 2000), instead of merging.

A row of attention gives the next step of a random walk from its position (Ivanova et al., "Diffusing, Walking and
Cutting", 2024). An edge of the graph is the flow between two positions in k such steps. DiffCut cuts features instead.

Axes: P positions, n positions of the part of the graph that is to be cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

MAX_DENSE_POSITIONS = 64
"""Graphs of up to this many positions are solved densely, and larger ones by Lanczos' method."""

TOLERANCE = 1e-4
"""Relative tolerance of the eigenvalue; the best cut along the eigenvector is then searched exactly."""

MIN_DEGREE = 1e-12
"""Floor of degrees and volumes, so that no division is by zero."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """A cut of one part of the graph in two.

    Attributes:
        cost: The largest normalised cut among this one and all cuts that led to its part of the graph, 0 to 2.
        first: int64 positions on one side.
        second: int64 positions on the other side.
    """

    cost: float
    first: np.ndarray
    second: np.ndarray


def walk_flow(attention: torch.Tensor, steps: int) -> np.ndarray:
    """Return ½(Aᵏ + Aᵏᵀ), the flow between positions in k steps of a random walk, float32 [P, P] and symmetric.

    Args:
        attention: float32 [P, P], rows sum to 1.
        steps: The number of steps, k.
    """
    walked = torch.linalg.matrix_power(attention, steps)
    return ((walked + walked.T) / 2).cpu().numpy()


def cut_tree(affinity: np.ndarray, max_cost: float) -> list[Cut]:
    """Return all cuts of cost below `max_cost`, each after the cut that its part of the graph came from.

    The same list holds the cuts for any smaller threshold, see `labels_at`.

    Args:
        affinity: float32 [P, P], symmetric, ≥ 0.
        max_cost: Threshold of the normalised cut, 0 to 2.
    """
    cuts: list[Cut] = []
    queue = [(np.arange(len(affinity)), 0.0)]
    while queue:
        part, cost_so_far = queue.pop(0)
        if len(part) < 2:
            continue
        first, second, cost = best_cut(affinity[np.ix_(part, part)])
        cost = max(cost, cost_so_far)
        if cost < max_cost:
            cuts.append(Cut(cost=cost, first=part[first], second=part[second]))
            queue += [(cuts[-1].first, cost), (cuts[-1].second, cost)]
    return cuts


def labels_at(cuts: list[Cut], threshold: float, positions: int) -> np.ndarray:
    """Return the part of each of `positions` positions after all cuts below the threshold, int64 [P], 0 to K − 1."""
    labels = np.zeros(positions, dtype=np.int64)
    made = (cut for cut in cuts if cut.cost < threshold)
    for number, cut in enumerate(made, start=1):
        labels[cut.second] = number
    return labels


def best_cut(affinity: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Find the best of the n − 1 cuts in the order of the second eigenvector.

    The cost of a normalised cut, 0 to 2, is the sum over both sides of the share of edges that the side loses:
    cut / volume + cut / other volume.

    Args:
        affinity: float32 [n, n], symmetric, ≥ 0.

    Returns:
        The positions on either side, ascending, and the cost.
    """
    degrees = np.maximum(affinity.sum(axis=1, dtype=np.float64), MIN_DEGREE)
    order = np.argsort(_second_eigenvector(affinity, degrees), kind="stable")
    ordered = affinity[np.ix_(order, order)]
    to_earlier = np.tril(ordered, -1).sum(axis=1, dtype=np.float64)
    within = np.cumsum(2 * to_earlier + np.diag(ordered))
    volumes = np.cumsum(degrees[order])
    cuts = np.maximum(volumes - within, 0)[:-1]
    costs = cuts / volumes[:-1] + cuts / np.maximum(volumes[-1] - volumes[:-1], MIN_DEGREE)
    best = int(costs.argmin())
    return np.sort(order[: best + 1]), np.sort(order[best + 1 :]), float(costs[best])


def _second_eigenvector(affinity: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Return the relaxed solution, the second eigenvector of D⁻¹W, with the sign that makes its largest element > 0."""
    scale = (1 / np.sqrt(degrees)).astype(np.float32)
    trivial = (np.sqrt(degrees) / np.linalg.norm(np.sqrt(degrees))).astype(np.float32)

    def product(vector: np.ndarray) -> np.ndarray:
        """Multiply by D⁻½WD⁻½ + I without its first eigenvector, which cuts nothing; the sum's eigenvalues are ≥ 0."""
        other = vector.ravel() - trivial * (trivial @ vector.ravel())
        moved = scale * (affinity @ (scale * other)) + other
        return moved - trivial * (trivial @ moved)

    count = len(degrees)
    if count <= MAX_DENSE_POSITIONS:
        _, vectors = np.linalg.eigh(np.stack([product(unit) for unit in np.eye(count, dtype=np.float32)]))
        vector = vectors[:, -1]
    else:
        operator = LinearOperator((count, count), matvec=product, dtype=np.float32)
        start = np.random.default_rng(0).standard_normal(count).astype(np.float32)
        _, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=TOLERANCE)
        vector = vectors[:, 0]
    vector = vector * scale
    return vector if vector[np.abs(vector).argmax()] > 0 else -vector
