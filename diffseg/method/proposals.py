"""Recorded attention into scores: how much each position belongs to each proposal.

Axes: B images in the batch, P = h·w token positions, K proposals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from diffseg.attention.aggregate import aggregate
from diffseg.attention.maps import Grid, SelfAttention
from diffseg.method.calibration import calibrated_threshold, metric_of
from diffseg.method.merge import anchor_distances, anchor_positions, group_means, kmeans, merge
from diffseg.method.ncut import cut_tree, labels_at, walk_flow
from diffseg.method.stability import FACTORS, most_stable
from diffseg.model.backbone import Step, no_step
from diffseg.settings import SegmenterSettings

Proposals = tuple[torch.Tensor, torch.Tensor]
"""float32 [B, K, P], and which of them there are, bool [B, K]; zeros where there is none."""

Finder = Callable[[torch.Tensor, Grid, SegmenterSettings, Sequence[float], Sequence[float]], Iterator[Proposals]]
"""Proposals of aggregated attention at each multiple of the thresholds."""


def scores_of(
    attention: SelfAttention,
    settings: SegmenterSettings,
    tau: Sequence[float],
    step: Step = no_step,
    *,
    cut: bool = False,
    overwrite: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Self-attention of a batch into the scores of `propose`, and bool [B], which images' attention is finite.

    overwrite: whether the finest map may be lost, which saves as much memory.
    """
    with step("aggregate"):
        aggregated, grid, finite = aggregate_attention(attention, settings, overwrite=overwrite)
    with step("merge"):
        return propose(aggregated, finite, grid, settings, tau, cut=cut), finite


def aggregate_attention(
    attention: SelfAttention, settings: SegmenterSettings, *, overwrite: bool
) -> tuple[torch.Tensor, Grid, torch.Tensor]:
    """Aggregated attention float32 [B, P, P], its grid, and bool [B], which images' is finite."""
    finest = attention.maps[attention.finest]
    aggregated, grid = aggregate(attention, settings.attention.weights, out=finest if overwrite else None)
    return aggregated, grid, torch.isfinite(aggregated.sum(dim=(1, 2)))


def propose(
    aggregated: torch.Tensor,
    finite: torch.Tensor,
    grid: Grid,
    settings: SegmenterSettings,
    tau: Sequence[float],
    *,
    cut: bool = False,
) -> torch.Tensor:
    """Aggregated attention [B, P, P] into float32 [B, K, h, w] scores of K proposals, ≥ 0.

    assign "peak": the proposals themselves, each a distribution, so that compact ones win by their height (the paper).
    "nearest": exp(−D) of each position's own row to each proposal, so that height does not count; D is the distance in
    units of what it is where symmetric KL is one nat. Proposals that there are not (see `merge`) and images that are
    not finite score 0. cut: by normalised cuts in place of merging; these, and `stable`, wait for a device, which
    merging at given thresholds does not.
    """
    if not cut and not settings.proposals.stable:
        scores = _scores(aggregated, next(_merged(aggregated, grid, settings, tau, (1.0,))), grid, settings)
    else:
        found = _cut if cut else _merged
        each = [
            _scores_of_image(rows[None], grid, settings, tau, found) if whole else rows.new_zeros(1, len(rows))
            for rows, whole in zip(aggregated, finite, strict=True)
        ]
        scores = pad_sequence(each, batch_first=True)
    return torch.where(finite[:, None, None], scores, 0).unflatten(-1, grid)


def _scores_of_image(
    aggregated: torch.Tensor, grid: Grid, settings: SegmenterSettings, tau: Sequence[float], found: Finder
) -> torch.Tensor:
    """float32 [K, P] of aggregated attention [1, P, P], at the given threshold or at the most stable one."""
    factors = FACTORS if settings.proposals.stable else (1.0,)
    each = [
        _scores(aggregated, proposals, grid, settings)[0]
        for proposals in found(aggregated, grid, settings, tau, factors)
    ]
    if len(each) == 1:
        return each[0]
    return each[most_stable([scores.argmax(dim=0).cpu().numpy() for scores in each])]


def _merged(
    aggregated: torch.Tensor, grid: Grid, settings: SegmenterSettings, tau: Sequence[float], factors: Sequence[float]
) -> Iterator[Proposals]:
    """Proposals of iterative merging at each multiple of the thresholds; the distances of round 1 are shared."""
    anchors = anchor_positions(grid, settings.merging.anchors_per_side, settings.merging.anchor_layout)
    metric = metric_of(settings.proposals.distance, grid)
    near = anchor_distances(aggregated, anchors, metric)
    for factor in factors:
        thresholds = [calibrated_threshold(factor * threshold, settings.proposals.distance) for threshold in tau]
        yield merge(
            aggregated, anchors=anchors, tau=thresholds, consume=settings.merging.consume, metric=metric, near=near
        )


def _cut(
    aggregated: torch.Tensor, grid: Grid, settings: SegmenterSettings, tau: Sequence[float], factors: Sequence[float]
) -> Iterator[Proposals]:
    """Mean rows of the parts of normalised cuts, of one image, [1, P, P]; factors are of a cost's odds, c / (1 − c)."""
    positions, cost = aggregated.shape[-1], settings.cuts.ncut
    thresholds = [factor * cost / (1 - cost + factor * cost) for factor in factors]
    cuts = cut_tree(walk_flow(aggregated[0], settings.cuts.ncut_steps), max(thresholds))
    for threshold in thresholds:
        labels = torch.from_numpy(labels_at(cuts, threshold, positions)).to(aggregated.device)
        members = labels == torch.arange(int(labels.max()) + 1, device=labels.device)[:, None]
        yield group_means(members[None], aggregated), members.new_ones(1, len(members))


def _scores(aggregated: torch.Tensor, proposals: Proposals, grid: Grid, settings: SegmenterSettings) -> torch.Tensor:
    """float32 [B, K, P] of aggregated attention [B, P, P]."""
    if settings.proposals.kmeans:
        proposals = kmeans(aggregated, *proposals)
    rows, alive = proposals
    if settings.proposals.assign == "nearest":
        rows = (
            metric_of(settings.proposals.distance, grid)(rows, aggregated)
            .div_(-calibrated_threshold(1.0, settings.proposals.distance))
            .exp_()
        )
    return torch.where(alive[..., None], rows, 0)
