"""Distances between attention maps: float32 [..., m, P] and [..., n, P] to float32 [..., m, n].

Rows are distributions over positions. All of these ask where two maps overlap; those of `diffseg.method.wasserstein` ask how far
apart they lie. Axes: m and n rows, P = h·w positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

TINY = 1e-12
"""Probabilities below count as this one, so that a map with zeros has distance 0 to itself and never NaN."""

BLOCK_ELEMENTS = 2**20
"""Logarithms held at a time on a CPU, 4 MiB, which stay in its cache until both products have read them."""

DEVICE_BLOCK_ELEMENTS = 2**28

Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def symmetric_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """½ Σ (p − q)(ln p − ln q), the mean of both KL directions (DiffSeg equation 4), in nats, ≥ 0.

    p: float32 [..., m, P], q: float32 [..., n, P], rows are distributions. Two matrix products instead of an [m, n, P]
    array: ½ (h_p + h_q − p·ln qᵀ − ln p·qᵀ) with h = Σ p ln p, over blocks of rows of q, so that ln q is never held as
    a whole. Cancellation costs about 1e-4 absolute in float32.
    """
    log_p = p.clamp_min(TINY).log_()
    entropy_p = torch.linalg.vecdot(p, log_p)[..., :, None]
    distances = p.new_empty(*p.shape[:-1], q.shape[-2])
    step = _rows_at_once(q)
    workspace = torch.empty_like(q[..., :step, :])
    for start in range(0, q.shape[-2], step):
        rows = q[..., start : start + step, :]
        log_rows = torch.clamp(rows, min=TINY, out=workspace[..., : rows.shape[-2], :]).log_()
        block = distances[..., start : start + step]
        torch.matmul(p, log_rows.mT, out=block)
        block += log_p @ rows.mT
        torch.sub(entropy_p + torch.linalg.vecdot(rows, log_rows)[..., None, :], block, out=block)
        block.div_(2).clamp_min_(0)
    return distances


def jensen_shannon(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """H(½(p + q)) − ½H(p) − ½H(q) in nats, 0 to ln 2, its root a metric; zeros need no floor.

    There is no form of it as a product of matrices: m·n·P logarithms, forty times as long as symmetric KL.
    """

    # with s = p + q it is ½(Σ p ln p + Σ q ln q − Σ s ln s) + ln 2, as s sums to 2
    distances = p.new_empty(*p.shape[:-1], q.shape[-2])
    step = _rows_at_once(q)
    workspaces = torch.empty_like(q[..., :step, :]), torch.empty_like(q[..., :step, :])
    of_p = torch.linalg.vecdot(p, p.clamp_min(TINY).log_())[..., :, None]
    for start in range(0, q.shape[-2], step):
        rows, block = q[..., start : start + step, :], distances[..., start : start + step]
        sums, logs = (space[..., : rows.shape[-2], :] for space in workspaces)
        for index in range(p.shape[-2]):
            torch.add(rows, p[..., index, None, :], out=sums)
            torch.clamp(sums, min=TINY, out=logs).log_()
            block[..., index, :] = torch.linalg.vecdot(sums, logs)
        of_rows = torch.linalg.vecdot(rows, torch.clamp(rows, min=TINY, out=logs).log_())
        torch.sub(of_p + of_rows[..., None, :], block, out=block)
    return distances.div_(2).add_(math.log(2)).clamp_min_(0)


def hellinger(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """1 − Σ √(p q), 0 to 1, its root a metric: the squared Hellinger distance. One matrix product, no logarithms."""
    roots = p.sqrt()
    return by_rows(lambda rows: 1 - roots @ rows.sqrt().mT, p, q).clamp_min_(0)


def pearson(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """1 − the correlation of p and q over positions, 0 to 2: what all positions are given alike does not count.

    A map without any variation has no direction: it is at 0 from its like and at 1 from all others.
    """

    def directions(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        centred = maps - maps.mean(dim=-1, keepdim=True)
        length = centred.norm(dim=-1, keepdim=True)
        flat = (length < 1e-6 / math.sqrt(maps.shape[-1])).to(maps.dtype)
        return centred * (1 - flat) / length.clamp_min(TINY), flat

    own, own_flat = directions(p)

    def of_rows(rows: torch.Tensor) -> torch.Tensor:
        others, flat = directions(rows)
        return 1 - own @ others.mT - own_flat * flat.mT

    return by_rows(of_rows, p, q).clamp_min_(0)


def by_rows(of_rows: Callable[[torch.Tensor], torch.Tensor], p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """float32 [..., m, n] from a function of some rows of q, so that what it makes of them never is of all."""
    distances = p.new_empty(*p.shape[:-1], q.shape[-2])
    step = _rows_at_once(q)
    for start in range(0, q.shape[-2], step):
        distances[..., start : start + step] = of_rows(q[..., start : start + step, :])
    return distances


def _rows_at_once(q: torch.Tensor) -> int:
    elements = BLOCK_ELEMENTS if q.device.type == "cpu" else DEVICE_BLOCK_ELEMENTS
    return max(1, elements * q.shape[-2] // q.numel())
