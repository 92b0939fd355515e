"""Distances between attention maps: float32 [m, P] and [n, P] to float32 [m, n]."""

from __future__ import annotations

import torch

TINY = 1e-12
"""Probabilities below count as this one, so that a map with zeros has distance 0 to itself and never NaN."""


def symmetric_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """½ Σ (p − q)(ln p − ln q), the mean of both KL directions (DiffSeg equation 4), in nats, ≥ 0.

    p: float32 [m, P], q: float32 [n, P], rows are distributions. Two matrix products instead of an [m, n, P] array:
    ½ (h_p + h_q − p·ln qᵀ − ln p·qᵀ) with h = Σ p ln p. Cancellation costs about 1e-4 absolute in float32.
    """
    log_p = p.clamp_min(TINY).log_()
    log_q = log_p if p is q else q.clamp_min(TINY).log_()
    entropy_p = torch.einsum("mp,mp->m", p, log_p)
    entropy_q = entropy_p if p is q else torch.einsum("np,np->n", q, log_q)
    cross = torch.addmm(p @ log_q.T, log_p, q.T)
    return ((entropy_p[:, None] + entropy_q[None, :] - cross) / 2).clamp_min_(0)
