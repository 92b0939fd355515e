"""Recorded attention into scores: how much each position belongs to each proposal.

Axes: B images in the batch, P = h·w token positions, K proposals.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from diffseg.aggregate import aggregate
from diffseg.attention import SelfAttention
from diffseg.backbone import Step, no_step
from diffseg.calibration import calibrated, metric_of
from diffseg.merge import anchor_positions, kmeans, merge
from diffseg.settings import SegmenterSettings


def scores_of(
    attention: SelfAttention,
    settings: SegmenterSettings,
    tau: Sequence[float],
    step: Step = no_step,
    *,
    overwrite: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Self-attention of a batch into float32 [B, K, h, w] scores of K proposals, ≥ 0, and bool [B], which are finite.

    assign "peak": the proposals themselves, each a distribution, so that compact ones win by their height (the paper).
    "nearest": exp(−D) of each position's own row to each proposal, so that height does not count; D is the distance in
    units of what it is where symmetric KL is one nat. Proposals that there are not (see `merge`) and images that are
    not finite score 0. overwrite: whether the finest map may be lost, which saves as much memory.
    """
    with step("aggregate"):
        finest = attention.maps[attention.finest]
        aggregated, grid = aggregate(attention, settings.weights, out=finest if overwrite else None)
        finite = torch.isfinite(aggregated.sum(dim=(1, 2)))
    with step("merge"):
        anchors = anchor_positions(grid, settings.anchors_per_side, settings.anchor_layout)
        metric = metric_of(settings.distance, grid)
        thresholds = [calibrated(threshold, settings.distance) for threshold in tau]
        proposals, alive = merge(aggregated, anchors=anchors, tau=thresholds, consume=settings.consume, metric=metric)
        if settings.kmeans:
            proposals, alive = kmeans(aggregated, proposals, alive)
        scores = proposals
        if settings.assign == "nearest":
            scores = metric(proposals, aggregated).div_(-calibrated(1.0, settings.distance)).exp_()
        scores = torch.where(alive[..., None] & finite[:, None, None], scores, 0)
    return scores.unflatten(-1, grid), finite
