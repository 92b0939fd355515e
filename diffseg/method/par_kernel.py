"""Pixel-adaptive refinement (`diffseg.method.par`) as two Triton kernels, for GPUs.

One computes the weights, and one runs in each iteration; in torch, both together take a thousand kernels. Importing
this module needs Triton.

Axes: B images, K proposals, N neighbours of a pixel, H and W pixels of the working image.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WEIGHT_PIXELS = 32
"""Pixels for which a program computes the weights of all neighbours."""

PIXELS, PROPOSALS = 128, 8
"""Pixels and proposals whose means a program takes: it reads each weight once for all of its proposals."""


def neighbour_weights_in_a_kernel(
    image: torch.Tensor,
    offsets: torch.Tensor,
    proximity: torch.Tensor,
    *,
    bandwidth: float,
    min_deviation: float,
    distance_weight: float,
) -> torch.Tensor:
    """Do the same as `diffseg.method.par.neighbour_weights`, apart from the order of the axes.

    Args:
        image: float32 [B, 3, H, W].
        offsets: int32 [N, 2], rows and columns to each neighbour.
        proximity: float32 [N], the distance term of the weights; it sums to 1.
        bandwidth: Standard deviations of colour at which the colour term has fallen to 1/e.
        min_deviation: Floor of the standard deviation of a colour.
        distance_weight: Weight of the distance term relative to the colour term.

    Returns:
        float32 [B, N, H, W].
    """
    images, _, height, width = image.shape
    weights = image.new_empty(images, len(offsets), height, width)
    with torch.cuda.device_of(image):  # Triton launches on the current device
        _compute_weights[triton.cdiv(height * width, WEIGHT_PIXELS), images](
            image.contiguous(),
            offsets,
            proximity,
            weights,
            height,
            width,
            bandwidth,
            min_deviation**2,
            distance_weight,
            count=len(offsets),
            padded=triton.next_power_of_2(len(offsets)),
            pixels=WEIGHT_PIXELS,
        )
    return weights


def weighted_means_in_kernels(
    scores: torch.Tensor, weights: torch.Tensor, offsets: torch.Tensor, iterations: int
) -> torch.Tensor:
    """Replace the scores of each pixel by the weighted sum of its neighbours' scores, several times.

    Args:
        scores: float32 [B, K, H, W].
        weights: float32 [B, N, H, W].
        offsets: int32 [N, 2], rows and columns to each neighbour.
        iterations: How often the scores are replaced.

    Returns:
        float32 [B, K, H, W].
    """
    images, count, height, width = scores.shape
    grid = (triton.cdiv(height * width, PIXELS), triton.cdiv(count, PROPOSALS), images)
    current = scores.contiguous()
    buffers = [torch.empty_like(current) for _ in range(min(iterations, 2))]
    with torch.cuda.device_of(scores):  # Triton launches on the current device
        for iteration in range(iterations):
            means = buffers[iteration % 2]
            _take_means[grid](
                current,
                weights,
                offsets,
                means,
                count,
                height,
                width,
                neighbours=len(offsets),
                pixels=PIXELS,
                proposals=PROPOSALS,
            )
            current = means
    return current


@triton.jit
def _compute_weights(
    image,
    offsets,
    proximity,
    weights,
    height,
    width,
    bandwidth,
    min_variance,
    distance_weight,
    count: tl.constexpr,
    padded: tl.constexpr,
    pixels: tl.constexpr,
):
    """Compute the weights of all `count` neighbours, padded to a power of two, of some pixels of an image."""
    area, of_image = height * width, tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
    inside = pixel < area
    neighbour = tl.arange(0, padded)
    exists = neighbour < count
    rows = tl.load(offsets + 2 * neighbour, mask=exists, other=0)
    columns = tl.load(offsets + 2 * neighbour + 1, mask=exists, other=0)
    # Beyond the image, its outermost pixels are repeated.
    row = tl.minimum(tl.maximum((pixel // width)[None, :] + rows[:, None], 0), height - 1)
    column = tl.minimum(tl.maximum((pixel % width)[None, :] + columns[:, None], 0), width - 1)
    position = row * width + column
    both = exists[:, None] & inside[None, :]
    dissimilarity = tl.full((padded, pixels), 0.0, tl.float32)
    for colour in range(3):
        plane = image + (of_image * 3 + colour) * area
        centre = tl.load(plane + pixel, mask=inside, other=0.0)
        difference = tl.where(both, tl.load(plane + position, mask=both, other=0.0) - centre[None, :], 0.0)
        total, squares = tl.sum(difference, axis=0), tl.sum(difference * difference, axis=0)
        variance = tl.maximum((squares - total * total / count) / (count - 1), min_variance)
        relative = difference / (tl.sqrt(variance) * bandwidth)[None, :]
        dissimilarity += relative * relative / 3
    closeness = tl.where(exists[:, None], -dissimilarity, float("-inf"))
    similarity = tl.exp(closeness - tl.max(closeness, axis=0)[None, :])
    similarity /= tl.sum(similarity, axis=0)[None, :]
    near = tl.load(proximity + neighbour, mask=exists, other=0.0)
    weight = (similarity + distance_weight * near[:, None]) / (1 + distance_weight)
    tl.store(weights + (of_image * count + neighbour[:, None]) * area + pixel[None, :], weight, mask=both)


@triton.jit
def _take_means(
    scores,
    weights,
    offsets,
    means,
    count,
    height,
    width,
    neighbours: tl.constexpr,
    pixels: tl.constexpr,
    proposals: tl.constexpr,
):
    """Take one weighted mean for some pixels and some proposals of an image."""
    area, of_image = height * width, tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
    proposal = tl.program_id(1) * proposals + tl.arange(0, proposals)
    inside, both = pixel < area, (proposal < count)[:, None] & (pixel < area)[None, :]
    planes = (of_image * count + proposal[:, None]) * area
    total = tl.full((proposals, pixels), 0.0, tl.float32)
    for neighbour in range(neighbours):
        rows, columns = tl.load(offsets + 2 * neighbour), tl.load(offsets + 2 * neighbour + 1)
        row = tl.minimum(tl.maximum(pixel // width + rows, 0), height - 1)
        column = tl.minimum(tl.maximum(pixel % width + columns, 0), width - 1)
        weight = tl.load(weights + (of_image * neighbours + neighbour) * area + pixel, mask=inside, other=0.0)
        total += tl.load(scores + planes + (row * width + column)[None, :], mask=both, other=0.0) * weight[None, :]
    tl.store(means + planes + pixel[None, :], total, mask=both)
