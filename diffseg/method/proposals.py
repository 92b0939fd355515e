"""Turn recorded self-attention into proposals and scores: how much each position belongs to each proposal.

Axes: B images in the batch, P = h·w token positions, K proposals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch.nn.utils.rnn import pad_sequence

from diffseg.attention.aggregate import aggregate
from diffseg.attention.layer_output import LayerOutput
from diffseg.attention.maps import Grid, SelfAttention
from diffseg.method.calibration import calibrated_threshold, metric_of
from diffseg.method.leaves import LEAF_ANCHOR_STEP, LEAF_SHARE, LeafSignals
from diffseg.method.merge import Proposals, anchor_distances, anchor_positions, group_means, kmeans, merge
from diffseg.method.ncut import cut, feature_weights, parts_on_grid, spectrum
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
    cuts: bool = False,
    overwrite: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Aggregate the self-attention of a batch and compute the scores of its proposals.

    Args:
        attention: The recorded maps of each resolution.
        settings: Settings of the method.
        tau: Merging threshold of each round, in nats of symmetric KL.
        step: Context manager factory that receives the name of each step, to time it.
        cuts: Whether to use normalised cuts instead of merging.
        overwrite: Whether the finest map may be overwritten, which saves as much memory.

    Returns:
        The scores of `propose`, and which images have finite attention, bool [B].
    """
    with step("aggregate"):
        aggregated, grid, finite = aggregate_attention(attention, settings, overwrite=overwrite)
    with step("merge"):
        return propose(aggregated, finite, grid, settings, tau, cuts=cuts), finite


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
    cuts: bool = False,
    layer_output: LayerOutput | None = None,
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
        cuts: Whether to use normalised cuts instead of merging.
        layer_output: Features to cut by; None cuts by the attention.

    Returns:
        float32 [B, K, h, w], ≥ 0. Padding proposals (see `Proposals`) and images that are not finite score 0.
    """
    if not settings.proposals.stable:
        find = partial(_cut, layer_output=layer_output, finite=finite) if cuts else _merge
        (proposals,) = find(aggregated, grid, settings, tau, (1.0,))
        scores = _scores(aggregated, _refined(aggregated, proposals, settings), grid, settings)
    else:
        image_scores = []
        for image, (rows, is_finite) in enumerate(zip(aggregated, finite, strict=True)):
            of_image = None if layer_output is None else layer_output.of_images(image, image + 1)
            find = partial(_cut, layer_output=of_image, finite=finite[image : image + 1]) if cuts else _merge
            image_scores.append(
                _scores_of_image(rows[None], grid, settings, tau, find) if is_finite else rows.new_zeros(1, len(rows))
            )
        scores = pad_sequence(image_scores, batch_first=True)
    return torch.where(finite[:, None, None], scores, 0).unflatten(-1, grid)


def propose_with_leaves(
    aggregated: torch.Tensor, finite: torch.Tensor, grid: Grid, settings: SegmenterSettings, tau: Sequence[float]
) -> tuple[torch.Tensor, LeafSignals]:
    """Find the same proposals as `propose` by merging, and what the levels below and above them are made of.

    Returns:
        The scores of `propose`, and the signals of the levels.
    """
    rows, scores = [], []
    for proposals in _merge(aggregated, grid, settings, tau, (1.0, LEAF_SHARE), fine_step=LEAF_ANCHOR_STEP):
        refined = _refined(aggregated, proposals, settings)
        rows.append(refined[0])
        scores.append(torch.where(finite[:, None, None], _scores(aggregated, refined, grid, settings), 0))
    all_rows = torch.cat(rows, dim=1)
    distances = metric_of(settings.proposals.distance, grid)(all_rows, all_rows)
    maps, fine = (of_threshold.unflatten(-1, grid) for of_threshold in scores)
    return maps, LeafSignals(scores=maps, fine_scores=fine, distances=distances)


def _scores_of_image(
    aggregated: torch.Tensor, grid: Grid, settings: SegmenterSettings, tau: Sequence[float], finder: Finder
) -> torch.Tensor:
    """Return the scores of one image, float32 [K, P] of [1, P, P], at the given or at the most stable threshold."""
    factors = FACTORS if settings.proposals.stable else (1.0,)
    candidates = [
        _scores(aggregated, _refined(aggregated, proposals, settings), grid, settings)[0]
        for proposals in finder(aggregated, grid, settings, tau, factors)
    ]
    if len(candidates) == 1:
        return candidates[0]
    return candidates[most_stable([scores.argmax(dim=0).cpu().numpy() for scores in candidates])]


def _merge(
    aggregated: torch.Tensor,
    grid: Grid,
    settings: SegmenterSettings,
    tau: Sequence[float],
    factors: Sequence[float],
    *,
    fine_step: int = 1,
) -> Iterator[Proposals]:
    """Yield the proposals of iterative merging at each multiple of the thresholds; all share the first distances.

    Factors below 1 use every `fine_step`-th anchor.
    """
    merging, distance = settings.merging, settings.proposals.distance
    anchors = anchor_positions(grid, merging.anchors_per_side, merging.anchor_layout)
    metric = metric_of(distance, grid)
    first = anchor_distances(aggregated, anchors, metric)
    for factor in factors:
        thresholds = [calibrated_threshold(factor * threshold, distance) for threshold in tau]
        every = slice(None, None, fine_step if factor < 1 else 1)
        yield merge(
            aggregated,
            anchors=anchors[every],
            tau=thresholds,
            consume=merging.consume,
            metric=metric,
            first_distances=first[:, every],
        )


def _cut(
    aggregated: torch.Tensor,
    grid: Grid,
    settings: SegmenterSettings,
    tau: Sequence[float],
    factors: Sequence[float],
    *,
    layer_output: LayerOutput | None,
    finite: torch.Tensor,
) -> Iterator[Proposals]:
    """Yield the mean rows of the parts of a normalised cut; each factor multiplies the odds of the cost, c / (1 − c).

    Args:
        aggregated: float32 [B, P, P].
        grid: Height and width of the positions.
        settings: Settings of the method.
        tau: Not used; merging has it.
        factors: Multiples of the odds.
        layer_output: Features to cut by; None cuts by the attention.
        finite: bool [B], images whose attention is finite; the others get no proposal.
    """
    if layer_output is None:
        is_finite = finite.all()
        walk = aggregated if is_finite else torch.where(finite[:, None, None], aggregated, 0)
        graph = spectrum(walk, settings.cuts.ncut_steps)
    else:
        features = torch.where(finite[:, None, None], layer_output.maps, 0)
        graph = spectrum(feature_weights(features))
    cost = settings.cuts.ncut
    for factor in factors:
        parts = cut(graph, factor * cost / (1 - cost + factor * cost))
        if layer_output is not None:
            parts = parts_on_grid(parts, layer_output.grid, grid)
        members = parts[:, None] == torch.arange(graph.values.shape[1], device=parts.device)[:, None]
        yield group_means(members, aggregated), members.any(dim=-1)


def _refined(aggregated: torch.Tensor, proposals: Proposals, settings: SegmenterSettings) -> Proposals:
    """Return the proposals, refined by k-means if the settings say so."""
    return kmeans(aggregated, *proposals) if settings.proposals.kmeans else proposals


def _scores(aggregated: torch.Tensor, proposals: Proposals, grid: Grid, settings: SegmenterSettings) -> torch.Tensor:
    """Return the scores of proposals, float32 [B, K, P]."""
    rows, valid = proposals
    if settings.proposals.assign == "nearest":
        distance = settings.proposals.distance
        scale = -calibrated_threshold(1.0, distance)
        rows = metric_of(distance, grid)(rows, aggregated).div_(scale).exp_()
    return torch.where(valid[..., None], rows, 0)
