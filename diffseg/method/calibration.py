"""Distances by name, and thresholds that mean the same with each of them.

Users give thresholds in nats of symmetric KL. For another distance, a threshold is converted with a reference case: two
regions side by side, each with a share ε of its attention in the other region. Their symmetric KL is
(1 − 2ε)·ln((1 − ε)/ε) nats, so a threshold in nats stands for a leakage ε, and its counterpart is the other distance
between two regions with that leakage. With every distance, such regions merge from the same leakage on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import torch
from scipy.optimize import brentq

from diffseg.attention.maps import Grid
from diffseg.component_settings import Distance
from diffseg.method.distance import TINY, Metric, hellinger, jensen_shannon, pearson, symmetric_kl
from diffseg.method.wasserstein import gaussian_w2, marginal_w1, sliced_w2

REFERENCE_GRID, REFERENCE_SIDE = (16, 16), 4
"""Grid of the reference case and the side of its two square regions, in tokens; each covers a sixteenth of the grid.

KL, Jensen-Shannon and Hellinger do not depend on these sizes; the other distances do.
"""

_OVERLAP: Mapping[str, Metric] = {
    "kl": symmetric_kl,
    "js": jensen_shannon,
    "hellinger": hellinger,
    "pearson": pearson,
}
_TRANSPORT: Mapping[str, Callable[[torch.Tensor, torch.Tensor, Grid], torch.Tensor]] = {
    "wasserstein": marginal_w1,
    "sliced": sliced_w2,
    "gaussian": gaussian_w2,
}


def metric_of(distance: Distance, grid: Grid) -> Metric:
    """Return the distance with this name between maps over a grid: [..., m, P] and [..., n, P] to [..., m, n]."""
    if distance in _OVERLAP:
        return _OVERLAP[distance]
    transport = _TRANSPORT[distance]
    return lambda p, q: transport(p, q, grid)


@functools.cache
def calibrated_threshold(tau: float, distance: Distance) -> float:
    """Return the distance between two regions with the leakage at which their symmetric KL is `tau` nats.

    Returns:
        The threshold, in the units of `distance`; infinity where symmetric KL never reaches `tau`.
    """
    if distance == "kl":
        return tau
    if tau >= -math.log(TINY):
        return math.inf
    rows = _reference_rows(critical_leakage(tau))
    return metric_of(distance, REFERENCE_GRID)(rows[:1], rows[1:]).item()


def critical_leakage(tau: float) -> float:
    """Return the leakage ε, 0 to ½, at which (1 − 2ε)·ln((1 − ε)/ε) = tau, for 0 ≤ tau < 27.6 nats."""
    if tau == 0:
        return 0.5
    return brentq(lambda leak: (1 - 2 * leak) * math.log((1 - leak) / leak) - tau, TINY / 2, 0.5, xtol=TINY / 2)


def _reference_rows(leak: float) -> torch.Tensor:
    """Return an attention row of each of the two reference regions, float32 [2, P]."""
    first, second = torch.zeros(2, *REFERENCE_GRID)
    top = REFERENCE_GRID[0] // 2 - REFERENCE_SIDE // 2
    middle = REFERENCE_GRID[1] // 2
    first[top : top + REFERENCE_SIDE, middle - REFERENCE_SIDE : middle] = REFERENCE_SIDE**-2
    second[top : top + REFERENCE_SIDE, middle : middle + REFERENCE_SIDE] = REFERENCE_SIDE**-2
    return torch.stack([(1 - leak) * first + leak * second, leak * first + (1 - leak) * second]).flatten(1)
