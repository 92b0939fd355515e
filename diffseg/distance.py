"""Distances between attention maps: float32 [..., m, P] and [..., n, P] to float32 [..., m, n]."""

from __future__ import annotations

import torch

TINY = 1e-12
"""Probabilities below count as this one, so that a map with zeros has distance 0 to itself and never NaN."""

BLOCK_ELEMENTS = 2**20
"""Logarithms held at a time on a CPU, 4 MiB, which stay in its cache until both products have read them."""

DEVICE_BLOCK_ELEMENTS = 2**28


def symmetric_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """½ Σ (p − q)(ln p − ln q), the mean of both KL directions (DiffSeg equation 4), in nats, ≥ 0.

    p: float32 [..., m, P], q: float32 [..., n, P], rows are distributions. Two matrix products instead of an [m, n, P]
    array: ½ (h_p + h_q − p·ln qᵀ − ln p·qᵀ) with h = Σ p ln p, over blocks of rows of q, so that ln q is never held as
    a whole. Cancellation costs about 1e-4 absolute in float32.
    """
    log_p = p.clamp_min(TINY).log_()
    entropy_p = torch.linalg.vecdot(p, log_p)[..., :, None]
    distances = p.new_empty(*p.shape[:-1], q.shape[-2])
    elements = BLOCK_ELEMENTS if q.device.type == "cpu" else DEVICE_BLOCK_ELEMENTS
    step = max(1, elements * q.shape[-2] // q.numel())
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
