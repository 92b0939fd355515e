"""Pixel-adaptive refinement (PAR): scores that follow the borders of the image (Ru et al., CVPR 2022, section 3.4).

Axes: B images, K proposals, N neighbours of a pixel, H and W pixels of the working image.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from diffseg.attention.bilinear import bilinear_matrix
from diffseg.devices import to_device
from diffseg.method.kernels import runs_kernels

WORKING_SIDE = 256
"""Largest side of the working image, in pixels. Doubling it took three times as long and gave no better borders."""

DILATIONS = (1, 2, 4, 8, 12, 24)
"""Distances to the neighbours along the axes, in pixels."""

REACH = max(DILATIONS)
OFFSETS = tuple((d * y, d * x) for d in DILATIONS for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))
"""Rows and columns to each of the 48 neighbours, eight at each dilation; the pixel is not a neighbour of itself."""

BANDWIDTH = 0.3
"""Standard deviations of colour at which a neighbour's weight has fallen to 1/e."""

DISTANCE_WEIGHT = 0.01
"""Weight of the distance term relative to the colour term."""

ITERATIONS = 10
"""How often each pixel takes the mean of its neighbours."""

MIN_DEVIATION = 1 / 255
"""Floor of the standard deviation of a colour: half a grey level of an image in [−1, 1]."""

BAND_ROWS = 64
"""Rows refined at a time on a CPU: fewer make more calls, and more leave its cache where there are many proposals."""

ELEMENTS_AT_ONCE = 2**28
"""Weights and scores held at a time, 1 GiB of float32: more images are refined one after the other."""


def refine(scores: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Upsample scores from the token grid to the model's square, at most `WORKING_SIDE` a side, and refine them.

    Args:
        scores: float32 [B, K, h, w], ≥ 0.
        pixels: float32 [B, 3, S, S] in [−1, 1], the images that the tokens cover.

    Returns:
        float32 [B, K, s, s] with s = min(S, WORKING_SIDE).
    """
    side = min(pixels.shape[-1], WORKING_SIDE)
    down, along = (bilinear_matrix(tokens, side, device=scores.device) for tokens in scores.shape[2:])
    at_once = max(1, ELEMENTS_AT_ONCE // ((len(OFFSETS) + 2 * scores.shape[1]) * side * side))
    parts = []
    for of_images, of_pixels in zip(scores.split(at_once), pixels.split(at_once), strict=True):
        image = F.adaptive_avg_pool2d(to_device(of_pixels, scores.device), side)
        upsampled = down @ of_images.flatten(0, 1) @ along.T
        parts.append(pixel_adaptive(upsampled.unflatten(0, of_images.shape[:2]), image))
    return torch.cat(parts)


def pixel_adaptive(scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Replace the scores of each pixel by the weighted mean of its neighbours' scores, `ITERATIONS` times.

    The weights (`neighbour_weights`) favour neighbours of similar colour. They sum to 1, so that no score leaves the
    range of its proposal (the maximum principle), and a proposal whose scores are all zero keeps them. Beyond the
    image, its outermost pixels are repeated.

    Args:
        scores: float32 [B, K, H, W].
        image: float32 [B, 3, H, W] in [−1, 1].

    Returns:
        float32 [B, K, H, W].
    """
    if runs_kernels(scores.device):
        return pixel_adaptive_in_kernels(scores, image)
    weights = neighbour_weights(image)
    height, width = image.shape[2:]
    rows = BAND_ROWS if scores.device.type == "cpu" else height
    for _ in range(ITERATIONS):
        padded, scores = _pad(scores), torch.zeros_like(scores)
        for top in range(0, height, rows):
            band, band_weights = scores[:, :, top : top + rows], weights[:, :, top : top + rows]
            for weight, (y, x) in zip(band_weights, OFFSETS, strict=True):
                band.addcmul_(_window(padded, top + y, x, band.shape[2], width), weight[:, None])
    return scores


def pixel_adaptive_in_kernels(scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Do the same as `pixel_adaptive` in a few Triton kernels."""
    from diffseg.method.par_kernel import neighbour_weights_in_a_kernel, weighted_means_in_kernels

    offsets = to_device(torch.tensor(OFFSETS, dtype=torch.int32), scores.device)
    weights = neighbour_weights_in_a_kernel(
        image,
        offsets,
        _proximity(scores.device),
        bandwidth=BANDWIDTH,
        min_deviation=MIN_DEVIATION,
        distance_weight=DISTANCE_WEIGHT,
    )
    return weighted_means_in_kernels(scores, weights, offsets, ITERATIONS)


def neighbour_weights(image: torch.Tensor) -> torch.Tensor:
    """Return the weight of each neighbour of each pixel, float32 [N, B, H, W], ≥ 0, with sum 1 at every pixel.

    The weights are a softmax over the neighbours of −mean over colours of (difference / (0.3 σ))², where σ is the
    standard deviation of that colour over the neighbours, plus 0.01 times the same form of their distances in place of
    the colour differences. The sum is divided by 1.01; the authors leave it at 1.01.

    Args:
        image: float32 [B, 3, H, W] in [−1, 1].
    """
    images, _, height, width = image.shape
    padded = _pad(image)
    difference, square = torch.empty_like(image), torch.empty_like(image)
    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    for offset in OFFSETS:
        torch.sub(_window(padded, *offset, height, width), image, out=difference)
        total += difference
        squares += torch.square(difference, out=square)
    variance = (squares - total.square() / len(OFFSETS)) / (len(OFFSETS) - 1)
    scale = variance.clamp_min(MIN_DEVIATION**2).sqrt() * BANDWIDTH
    weights = image.new_empty(len(OFFSETS), images, height, width)
    for dissimilarity, offset in zip(weights, OFFSETS, strict=True):
        torch.sub(_window(padded, *offset, height, width), image, out=difference)
        torch.square(difference.div_(scale), out=square)
        torch.mean(square, dim=1, out=dissimilarity)
    weights = torch.softmax(weights.neg_(), dim=0, out=weights)
    weights += DISTANCE_WEIGHT * _proximity(image.device)[:, None, None, None]
    return weights.div_(1 + DISTANCE_WEIGHT)


@functools.cache
def _proximity(device: torch.device) -> torch.Tensor:
    """Return the softmax over the neighbours of −(distance / (0.3 standard deviations of the distances))², [N]."""
    with torch.inference_mode(mode=False):
        distances = torch.tensor(OFFSETS, dtype=torch.float32).norm(dim=1)
        return to_device(torch.softmax(-(distances / (distances.std() * BANDWIDTH)).square(), dim=0), device)


def _pad(maps: torch.Tensor) -> torch.Tensor:
    """Repeat the outermost pixels of [B, C, H, W] on all sides, as far as the farthest neighbour."""
    return F.pad(maps, (REACH,) * 4, mode="replicate")


def _window(padded: torch.Tensor, top: int, left: int, rows: int, columns: int) -> torch.Tensor:
    """Return a rectangle of a padded map; `top` and `left` count from the corner of the map without its padding."""
    return padded[:, :, REACH + top : REACH + top + rows, REACH + left : REACH + left + columns]
