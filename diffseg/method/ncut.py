"""Segments by a K-way normalised cut of a graph of positions, for a batch of images on its device.

A row of attention gives the next step of a random walk from its position (Ivanova et al., "Diffusing, Walking and
Cutting", 2024), and an edge of the graph is the flow between two positions in k such steps. On features, an edge is a
power of their cosine (DiffCut, Couairon et al., 2024).

The relaxed problem is solved by block power iteration. Its leading eigenvectors are rotated towards indicators of the
parts (Yu and Shi, "Multiclass spectral clustering", 2003), from rows that a pivoted QR decomposition chooses (Damle et
al., 2016), and steps on the discrete problem end it. Products with the graph are products with the attention, so no
other matrix of its size is made.

Axes: B images in the batch, P positions, K parts, or eigenvectors, of which an image uses its first ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from diffseg.attention.maps import Grid

MAX_PARTS = 20
"""Most parts of an image, and the width of the block of vectors."""

POWER_STEPS, ROTATIONS, DISCRETE_STEPS = 12, 3, 5
"""Steps of the power iteration, of the rotation, and on the discrete problem. On photographs and scenes, 12 power steps
leave an error of 1e-6 in the eigenvalues, and more of the other steps lower the cost of a cut by less than 0.001."""

SHIFT = 0.05
"""Multiple of the identity that the power iteration adds, so that no vector vanishes in a graph of few parts."""

JITTER = 1e-7
"""Share of the mean of a Gram matrix's diagonal that is added to it, so that it can be decomposed."""

MIN_DEGREE = 1e-12
"""Floor of degrees and volumes, so that no division is by zero."""

FEATURE_POWER = 10
"""Power of the cosine of two features after it was stretched to 0 to 1, as in DiffCut."""


class Spectrum(NamedTuple):
    """The leading eigenvectors of graphs.

    Attributes:
        walk: float32 [B, P, P], the matrix of the graphs, ≥ 0.
        steps: k; the weights of the edges are ½(Aᵏ + Aᵏᵀ).
        degrees: float32 [B, P], the sums of the weights.
        values: float32 [B, K], the largest eigenvalues of D⁻½WD⁻½, descending, at most 1.
        vectors: float32 [B, P, K], their orthonormal eigenvectors.
    """

    walk: torch.Tensor
    steps: int
    degrees: torch.Tensor
    values: torch.Tensor
    vectors: torch.Tensor

    def flow(self, block: torch.Tensor) -> torch.Tensor:
        """Return the product of the weights of the edges and a block of vectors, float32 [B, P, n]."""
        return _flow(self.walk, self.steps, block)


def spectrum(walk: torch.Tensor, steps: int = 1) -> Spectrum:
    """Solve the relaxed problem: find the leading eigenvectors of D⁻½WD⁻½.

    Args:
        walk: float32 [B, P, P], ≥ 0 and finite: attention whose rows sum to 1, or symmetric weights.
        steps: Number of steps of the random walk that join two positions; 1 for weights that are no walk.
    """
    batch, positions, _ = walk.shape
    degrees = _flow(walk, steps, walk.new_ones(batch, positions, 1)).clamp_min(MIN_DEGREE)
    scale = degrees.rsqrt()

    def product(block: torch.Tensor) -> torch.Tensor:
        return scale * _flow(walk, steps, scale * block)

    start = torch.randn(positions, min(MAX_PARTS, positions), generator=torch.Generator().manual_seed(0))
    block = start.to(walk.device).repeat(batch, 1, 1)
    block[..., :1] = degrees.sqrt()  # the first eigenvector
    block = _orthonormal(torch.nn.functional.normalize(block, dim=1))
    for _ in range(POWER_STEPS):
        block = _orthonormal(product(block) + SHIFT * block)
    block = _orthonormal(block)
    projected = block.mT @ product(block)
    values, rotation = torch.linalg.eigh((projected + projected.mT) / 2)
    return Spectrum(walk, steps, degrees[..., 0], values.flip(-1), (block @ rotation).flip(-1))


def cut(graph: Spectrum, max_cost: float) -> torch.Tensor:
    """Return the part of each position in a K-way normalised cut, int64 [B, P], 0 to K − 1; parts may be empty.

    K is the number of eigenvalues above 1 − c, because 1 − λ is the cost of the relaxed cut that an eigenvector makes.

    Args:
        graph: The solution of the relaxed problem.
        max_cost: c, 0 to 1.
    """
    used = graph.values > 1 - max_cost
    used[:, 0] = True
    unused = torch.diag_embed((~used).float())
    vectors = graph.vectors * used[:, None]
    rows = torch.nn.functional.normalize(vectors, dim=-1)
    rotation = _nearest_rotation(_distinct_rows(vectors).mT * used[:, None] + unused)
    for _ in range(ROTATIONS):
        chosen = torch.nn.functional.one_hot(_best_part(rows @ rotation, used), used.shape[1]).float()
        rotation = _nearest_rotation(rows.mT @ chosen + unused)
    parts = _best_part(rows @ rotation, used)
    for _ in range(DISCRETE_STEPS):
        parts = _improve(graph, parts)
    return parts


def feature_weights(features: torch.Tensor) -> torch.Tensor:
    """Return the weights of the edges between features, float32 [B, P, P] in 0 to 1, symmetric (DiffCut).

    Args:
        features: float [B, D, P].
    """
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    cosine = unit.mT @ unit
    low, high = cosine.amin(dim=(1, 2), keepdim=True), cosine.amax(dim=(1, 2), keepdim=True)
    return ((cosine - low) / (high - low).clamp_min(MIN_DEGREE)).pow_(FEATURE_POWER)


def parts_on_grid(parts: torch.Tensor, grid: Grid, working_grid: Grid) -> torch.Tensor:
    """Return the parts of the positions of another grid, int64 [B, P], of int64 [B, p], by the nearest position."""
    images = parts.unflatten(1, grid)[:, None].float()
    return torch.nn.functional.interpolate(images, size=working_grid, mode="nearest-exact").long().flatten(1)


def _flow(walk: torch.Tensor, steps: int, block: torch.Tensor) -> torch.Tensor:
    """Return ½(Aᵏ + Aᵏᵀ)X, where A is the matrix of a walk [B, P, P] and X a block of vectors [B, P, n]."""
    forwards = backwards = block
    for _ in range(steps):
        forwards, backwards = walk @ forwards, walk.mT @ backwards
    return (forwards + backwards) / 2


def _orthonormal(block: torch.Tensor) -> torch.Tensor:
    """Return an orthonormal basis of the columns of [B, P, n], by the Cholesky decomposition of their Gram matrix."""
    gram = block.mT @ block
    jitter = JITTER * gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    factor, _ = torch.linalg.cholesky_ex(gram + torch.diag_embed(jitter[:, None].expand(gram.shape[:2])))
    return torch.linalg.solve_triangular(factor.mT, block, upper=True, left=False)


def _distinct_rows(vectors: torch.Tensor) -> torch.Tensor:
    """Return K rows of [B, P, K] that are as different as possible: those that QR with column pivoting takes first."""
    images = torch.arange(len(vectors), device=vectors.device)
    rest, rows = vectors, []
    for _ in range(vectors.shape[2]):
        position = rest.square().sum(dim=-1).argmax(dim=-1)
        rows.append(vectors[images, position])
        direction = torch.nn.functional.normalize(rest[images, position], dim=-1)
        rest = rest - (rest @ direction[..., None]) * direction[:, None]
    return torch.stack(rows, dim=1)


def _nearest_rotation(matrices: torch.Tensor) -> torch.Tensor:
    """Return the orthogonal matrix that is nearest to each matrix, [B, K, K]."""
    left, _, right = torch.linalg.svd(matrices)
    return left @ right


def _best_part(scores: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(~used[:, None], -torch.inf).argmax(dim=-1)


def _improve(graph: Spectrum, parts: torch.Tensor) -> torch.Tensor:
    """Move each position to the part that lowers the cost of the cut most, to first order.

    The cost is K − Σ within / volume. The derivative by the membership of a position in a part is
    (2f − w) · degree / volume, where f is the share of the position's flow into the part, and w the share of the part's
    flow that stays in it.
    """
    members = torch.nn.functional.one_hot(parts, graph.values.shape[1]).float()
    flow = graph.flow(members)
    volumes = (graph.degrees[..., None] * members).sum(dim=1)
    stays = (members * flow).sum(dim=1) / volumes.clamp_min(MIN_DEGREE)
    gain = (2 * flow / graph.degrees[..., None] - stays[:, None]) / volumes.clamp_min(MIN_DEGREE)[:, None]
    return _best_part(gain, volumes > 0)
