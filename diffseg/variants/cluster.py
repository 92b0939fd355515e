"""Segments by covariance over variants of an image, after Network-free (Feng et al., CVPR 2023).

Positions of a segment respond alike when the image is varied in ways that keep its layout. Of that paper only the
abstract is public, which varies images of a GAN. Here one image is varied by the noise that is added to its latents,
see `diffseg.variants.record`. A position has a unit vector, and the product of two of them is the correlation of the
positions. All means of correlations follow from sums of unit vectors, so no matrix of all pairs of positions is made.

Axes: P positions, E values of a unit vector, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize, one_hot
from torch.nn.utils.rnn import pad_sequence

from diffseg.component_settings import CovarianceCount
from diffseg.variants.record import VariantResponse

JOINED = 20
"""Number of clusters that are made to be joined."""

STEPS = 20
"""Steps of k-means. On scenes and photographs, more steps change no label map by more than a few positions."""


def propose_by_covariance(
    response: VariantResponse, counts: Sequence[int | CovarianceCount], min_correlation: float
) -> torch.Tensor:
    """Return scores of clusters of positions, float32 [B, K, h, w], 0 to 1.

    Each image is clustered by itself, so its result does not depend on the others of its batch.

    Args:
        response: How the positions of the images respond to noise.
        counts: The number of clusters of each image, or "correlation" to join clusters by `join`.
        min_correlation: See `join`.
    """
    scores = []
    for units, count in zip(response.units, counts, strict=True):
        if isinstance(count, str):
            centres = join(units, cluster(units, JOINED), min_correlation)
        else:
            centres = cluster(units, count)
        scores.append(cluster_scores(units, centres))
    return pad_sequence(scores, batch_first=True).unflatten(-1, response.grid)


def cluster(units: torch.Tensor, count: int) -> torch.Tensor:
    """Return the centres of up to `count` clusters, unit vectors [K, E], by k-means on the unit vectors [P, E].

    K-means starts from positions that a pivoted QR decomposition of the leading components chooses, as in
    `diffseg.method.ncut`, so the result depends on nothing random. It runs on the vectors, and once more from the
    clusters that it finds in the leading components, in which the noise of single positions is small, but which
    lack a cluster whose response is weak. The clusters whose positions correlate more with their centres are kept.
    Clusters without positions are dropped, and the others are in the order of their first positions.
    """
    count = min(count, *units.shape)
    _, vectors = torch.linalg.eigh(units.mT @ units)
    projected = units @ vectors[:, -count:]
    leading = normalize(projected, dim=1)
    chosen = _distinct(leading, first=projected.square().sum(dim=1).argmax())
    in_leading = _nearest(leading, _kmeans(leading, leading[chosen]))
    starts = units[chosen], _centres(units, in_leading, count)
    centres, others = (_kmeans(units, start) for start in starts)
    if (units @ others.mT).amax(dim=1).sum() > (units @ centres.mT).amax(dim=1).sum():
        centres = others
    is_in = one_hot(_nearest(units, centres), count).bool()
    order = is_in.int().argmax(dim=0).sort(stable=True).indices
    return centres[order][is_in.any(dim=0)[order]]


def join(units: torch.Tensor, centres: torch.Tensor, min_correlation: float) -> torch.Tensor:
    """Join clusters while the centres of two of them correlate by more than `min_correlation`.

    Centres are compared, and not their positions one by one, because the noise of single positions lowers every
    correlation between them, and averages out of a centre.

    Args:
        units: Unit vectors [P, E].
        centres: Unit vectors [K, E].
        min_correlation: Correlation, −1 to 1.

    Returns:
        The centres of the joined clusters.
    """
    labels = _nearest(units, centres)
    sums = one_hot(labels, len(centres)).to(units.dtype).mT @ units
    while len(sums) > 1:
        directions = normalize(sums, dim=1)
        correlation = (directions @ directions.mT).fill_diagonal_(-1.0)
        place = int(correlation.argmax())
        first, second = sorted(divmod(place, len(sums)))
        if correlation[first, second] <= min_correlation:
            break
        sums[first] += sums[second]
        sums = torch.cat([sums[:second], sums[second + 1 :]])
    return normalize(sums, dim=1)


def cluster_scores(units: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return how strongly each position belongs to each cluster, ½ (1 + correlation with its centre), [K, P]."""
    return ((1 + centres @ units.mT) / 2).clamp_min(0)


def _kmeans(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    for _ in range(STEPS):
        centres = _centres(points, _nearest(points, centres), len(centres))
    return centres


def _nearest(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    return (points @ centres.mT).argmax(dim=1)


def _centres(points: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """Return the directions of the clusters' means, [K, E]; that of an empty cluster is 0."""
    return normalize(one_hot(labels, count).to(points.dtype).mT @ points, dim=1)


def _distinct(points: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Return the numbers of as many points as they have values: `first`, then those farthest from the span before."""
    rest, chosen = points, [first]
    while len(chosen) < points.shape[1]:
        direction = normalize(rest[chosen[-1]], dim=0)
        rest = rest - (rest @ direction)[:, None] * direction
        chosen.append(rest.square().sum(dim=1).argmax())
    return torch.stack(chosen)
