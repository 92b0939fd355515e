"""Distances between attention maps that measure how much two maps overlap.

Each takes float32 [..., m, P] and [..., n, P], whose rows are distributions over positions, and returns float32
[..., m, n]. The distances in `diffseg.method.wasserstein` measure how far apart two maps lie instead.

Axes: m and n rows, P = h·w positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from diffseg.method.kernels import runs_kernels

TINY = 1e-12
"""Floor of probabilities in logarithms: a map with zeros has distance 0 to itself, and no distance is NaN."""

BLOCK_ELEMENTS = 2**20
"""Logarithms held at a time on a CPU: 4 MiB, which stay in its cache until both products have read them."""

DEVICE_BLOCK_ELEMENTS = 2**28
"""Logarithms held at a time on any other device: 1 GiB."""

Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def symmetric_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return ½ Σ (p − q)(ln p − ln q) in nats, ≥ 0: the mean of both KL directions (DiffSeg equation 4).

    Two matrix products replace an array [m, n, P]: the distance is ½ (h_p + h_q − p·ln qᵀ − ln p·qᵀ) with
    h = Σ p ln p. The products run over blocks of rows of q, so that ln q is never held as a whole. Cancellation costs
    about 1e-4 absolute in float32.

    Args:
        p: float32 [..., m, P], rows are distributions.
        q: float32 [..., n, P], rows are distributions.
    """
    log_p = torch.empty_like(p)
    entropy_p = _logarithms(p, log_p)[..., :, None]
    distances = p.new_empty(*p.shape[:-1], q.shape[-2])
    step = _rows_per_block(q)
    workspace = torch.empty_like(q[..., :step, :])
    for start in range(0, q.shape[-2], step):
        rows = q[..., start : start + step, :]
        log_rows = workspace[..., : rows.shape[-2], :]
        entropy = _logarithms(rows, log_rows)
        block = distances[..., start : start + step]
        torch.matmul(p, log_rows.mT, out=block)
        block += log_p @ rows.mT
        torch.sub(entropy_p + entropy[..., None, :], block, out=block)
        block.div_(2).clamp_min_(0)
    return distances


def jensen_shannon(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return H(½(p + q)) − ½H(p) − ½H(q) in nats, 0 to ln 2; its square root is a metric, and zeros need no floor.

    It cannot be written as a product of matrices: m·n·P logarithms take forty times as long as symmetric KL.
    """
    # With s = p + q, whose rows sum to 2, this is ½(Σ p ln p + Σ q ln q − Σ s ln s) + ln 2.
    distances = p.new_empty(*p.shape[:-1], q.shape[-2])
    step = _rows_per_block(q)
    workspaces = torch.empty_like(q[..., :step, :]), torch.empty_like(q[..., :step, :])
    entropy_p = torch.linalg.vecdot(p, p.clamp_min(TINY).log_())[..., :, None]
    for start in range(0, q.shape[-2], step):
        rows, block = q[..., start : start + step, :], distances[..., start : start + step]
        sums, logs = (space[..., : rows.shape[-2], :] for space in workspaces)
        for index in range(p.shape[-2]):
            torch.add(rows, p[..., index, None, :], out=sums)
            torch.clamp(sums, min=TINY, out=logs).log_()
            block[..., index, :] = torch.linalg.vecdot(sums, logs)
        entropy_q = torch.linalg.vecdot(rows, torch.clamp(rows, min=TINY, out=logs).log_())
        torch.sub(entropy_p + entropy_q[..., None, :], block, out=block)
    return distances.div_(2).add_(math.log(2)).clamp_min_(0)


def hellinger(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the squared Hellinger distance, 1 − Σ √(p q), 0 to 1; its square root is a metric.

    It costs one matrix product and no logarithms.
    """
    roots = p.sqrt()
    return by_rows(lambda rows: 1 - roots @ rows.sqrt().mT, p, q).clamp_min_(0)


def pearson(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return 1 − the correlation of p and q over positions, 0 to 2; a constant added to all positions has no effect.

    A constant map has no direction: its distance is 0 to another constant map and 1 to any other map.
    """

    def directions(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return unit vectors, 0 for constant maps, and which maps are constant, as 0 or 1, [..., n, 1]."""
        centred = maps - maps.mean(dim=-1, keepdim=True)
        length = centred.norm(dim=-1, keepdim=True)
        constant = (length < 1e-6 / math.sqrt(maps.shape[-1])).to(maps.dtype)
        return centred * (1 - constant) / length.clamp_min(TINY), constant

    units_p, constant_p = directions(p)

    def distances_to(rows: torch.Tensor) -> torch.Tensor:
        units, constant = directions(rows)
        return 1 - units_p @ units.mT - constant_p * constant.mT

    return by_rows(distances_to, p, q).clamp_min_(0)


def by_rows(distances_to: Callable[[torch.Tensor], torch.Tensor], p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Compute float32 [..., m, n] block by block, so that intermediate results are never held for all rows of q.

    Args:
        distances_to: Returns the distances of all rows of p to some rows of q.
        p: float32 [..., m, P].
        q: float32 [..., n, P].
    """
    distances = p.new_empty(*p.shape[:-1], q.shape[-2])
    step = _rows_per_block(q)
    for start in range(0, q.shape[-2], step):
        distances[..., start : start + step] = distances_to(q[..., start : start + step, :])
    return distances


def _logarithms(rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Compute the logarithms of float32 [..., n, P] into `out`, and return Σ rows · ln rows, float32 [..., n]."""
    if rows.ndim <= 3 and rows.stride(-1) == 1 and runs_kernels(rows.device):
        from diffseg.method.distance_kernel import logarithms_in_a_kernel

        return logarithms_in_a_kernel(rows, TINY, out)
    torch.clamp(rows, min=TINY, out=out).log_()
    return torch.linalg.vecdot(rows, out)


def _rows_per_block(q: torch.Tensor) -> int:
    """Return how many rows of q to process at a time."""
    elements = BLOCK_ELEMENTS if q.device.type == "cpu" else DEVICE_BLOCK_ELEMENTS
    return max(1, elements * q.shape[-2] // q.numel())
