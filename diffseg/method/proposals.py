"""Turn recorded self-attention into proposals and scores: how much each position belongs to each proposal.

Axes: B images in the batch, P = h·w token positions, K proposals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from diffseg.attention.aggregate import aggregate
from diffseg.attention.maps import Grid, SelfAttention
from diffseg.method.calibration import calibrated_threshold, metric_of
from diffseg.method.merge import Proposals, anchor_distances, anchor_positions, group_means, kmeans, merge
from diffseg.method.ncut import cut_tree, labels_at, walk_flow
from diffseg.method.stability import FACTORS, most_stable
from diffseg.model.backbone import Step, no_step
from diffseg.settings import SegmenterSettings

Finder = Callable[[torch.Tensor, Grid, SegmenterSettings, Sequence[float], Sequence[float]], Iterator[Proposals]]
"""Yields the proposals of aggregated attention at each multiple of the thresholds."""


def scores_of(
    attention: SelfAttention,
    settings: SegmenterSettings,
    tau: Sequence[float],
    step: Step = no_step,
    *,
    cut: bool = False,
    overwrite: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Aggregate the self-attention of a batch and compute the scores of its proposals.

    Args:
        attention: The recorded maps of each resolution.
        settings: Settings of the method.
        tau: Merging threshold of each round, in nats of symmetric KL.
        step: Context manager factory that receives the name of each step, to time it.
        cut: Whether to use normalised cuts instead of merging.
        overwrite: Whether the finest map may be overwritten, which saves as much memory.

    Returns:
        The scores of `propose`, and which images have finite attention, bool [B].
    """
    with step("aggregate"):
        aggregated, grid, finite = aggregate_attention(attention, settings, overwrite=overwrite)
    with step("merge"):
        return propose(aggregated, finite, grid, settings, tau, cut=cut), finite


def aggregate_attention(
    attention: SelfAttention, settings: SegmenterSettings, *, overwrite: bool
) -> tuple[torch.Tensor, Grid, torch.Tensor]:
    """Return aggregated attention, float32 [B, P, P], its grid, and which images have finite attention, bool [B]."""
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
    """Find proposals in aggregated attention and score each position for each of them.

    With assign "peak" the scores are the proposals themselves. Each is a distribution, so compact proposals win by
    their height, as in the paper. With "nearest" the score is exp(−D) of the distance D between the position's
    attention row and the proposal, so that height has no effect; D is in units of the distance that stands for a
    symmetric KL of one nat.

    Merging at given thresholds waits for the device once, cuts and the setting `stable` more often.

    Args:
        aggregated: float32 [B, P, P], rows sum to 1.
        finite: bool [B], images whose attention is finite.
        grid: Height and width of the positions, in tokens.
        settings: Settings of the method.
        tau: Merging threshold of each round, in nats of symmetric KL.
        cut: Whether to use normalised cuts instead of merging.

    Returns:
        float32 [B, K, h, w], ≥ 0. Padding proposals (see `Proposals`) and images that are not finite score 0.
    """
    if not cut and not settings.proposals.stable:
        scores = _scores(aggregated, next(_merge(aggregated, grid, settings, tau, (1.0,))), grid, settings)
    else:
        finder = _cut if cut else _merge
        image_scores = [
            _scores_of_image(rows[None], grid, settings, tau, finder) if is_finite else rows.new_zeros(1, len(rows))
            for rows, is_finite in zip(aggregated, finite, strict=True)
        ]
        scores = pad_sequence(image_scores, batch_first=True)
    return torch.where(finite[:, None, None], scores, 0).unflatten(-1, grid)


def _scores_of_image(
    aggregated: torch.Tensor, grid: Grid, settings: SegmenterSettings, tau: Sequence[float], finder: Finder
) -> torch.Tensor:
    """Return the scores of one image, float32 [K, P] of [1, P, P], at the given or at the most stable threshold."""
    factors = FACTORS if settings.proposals.stable else (1.0,)
    candidates = [
        _scores(aggregated, proposals, grid, settings)[0]
        for proposals in finder(aggregated, grid, settings, tau, factors)
    ]
    if len(candidates) == 1:
        return candidates[0]
    return candidates[most_stable([scores.argmax(dim=0).cpu().numpy() for scores in candidates])]


def _merge(
    aggregated: torch.Tensor, grid: Grid, settings: SegmenterSettings, tau: Sequence[float], factors: Sequence[float]
) -> Iterator[Proposals]:
    """Yield the proposals of iterative merging at each multiple of the thresholds; all share the first distances."""
    merging, distance = settings.merging, settings.proposals.distance
    anchors = anchor_positions(grid, merging.anchors_per_side, merging.anchor_layout)
    metric = metric_of(distance, grid)
    first = anchor_distances(aggregated, anchors, metric)
    for factor in factors:
        thresholds = [calibrated_threshold(factor * threshold, distance) for threshold in tau]
        yield merge(
            aggregated, anchors=anchors, tau=thresholds, consume=merging.consume, metric=metric, first_distances=first
        )


def _cut(
    aggregated: torch.Tensor, grid: Grid, settings: SegmenterSettings, tau: Sequence[float], factors: Sequence[float]
) -> Iterator[Proposals]:
    """Yield the mean rows of the parts of normalised cuts of one image, [1, P, P].

    Each factor multiplies the odds of the cost, c / (1 − c).
    """
    positions, cost = aggregated.shape[-1], settings.cuts.ncut
    thresholds = [factor * cost / (1 - cost + factor * cost) for factor in factors]
    cuts = cut_tree(walk_flow(aggregated[0], settings.cuts.ncut_steps), max(thresholds))
    for threshold in thresholds:
        labels = torch.from_numpy(labels_at(cuts, threshold, positions)).to(aggregated.device)
        members = labels == torch.arange(int(labels.max()) + 1, device=labels.device)[:, None]
        yield group_means(members[None], aggregated), members.new_ones(1, len(members))


def _scores(aggregated: torch.Tensor, proposals: Proposals, grid: Grid, settings: SegmenterSettings) -> torch.Tensor:
    """Return the scores of proposals, float32 [B, K, P]."""
    if settings.proposals.kmeans:
        proposals = kmeans(aggregated, *proposals)
    rows, valid = proposals
    if settings.proposals.assign == "nearest":
        distance = settings.proposals.distance
        scale = -calibrated_threshold(1.0, distance)
        rows = metric_of(distance, grid)(rows, aggregated).div_(scale).exp_()
    return torch.where(valid[..., None], rows, 0)
