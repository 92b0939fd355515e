"""Scores that follow the image's own borders: pixel-adaptive refinement (PAR; Ru et al., CVPR 2022, section 3.4).

Axes: K proposals, N neighbours of a pixel, H and W pixels of the working image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from diffseg.attention.bilinear import bilinear_matrix
from diffseg.devices import to_device

WORKING_SIDE = 256
"""Most pixels of a side that are refined. Twice as many found no better borders, in three times the time."""

DILATIONS = (1, 2, 4, 8, 12, 24)
REACH = max(DILATIONS)
OFFSETS = tuple((d * y, d * x) for d in DILATIONS for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))
"""Rows and columns to each of the 48 neighbours: eight at each dilation. The pixel itself is none of them."""

BANDWIDTH = 0.3
"""A neighbour whose colour is this many standard deviations away counts 1/e."""

NEARNESS = 0.01
"""How much being near counts beside being alike."""

ITERATIONS = 10
FLAT = 1 / 255
"""Half a grey level of an image in [−1, 1]: a smaller standard deviation counts as this one."""

BAND_ROWS = 64
"""Rows refined at a time on a CPU: fewer are more calls, more leave its cache where there are many proposals."""


def refine(scores: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Scores on the grid of tokens to scores on the model's square, or on `WORKING_SIDE` where that is smaller.

    scores: float32 [K, h, w], ≥ 0. pixels: float32 [3, S, S] in [−1, 1] that those tokens show. Returns float32
    [K, s, s], s = min(S, WORKING_SIDE).
    """
    side = min(pixels.shape[-1], WORKING_SIDE)
    image = F.adaptive_avg_pool2d(to_device(pixels, scores.device), side)
    down, along = (to_device(bilinear_matrix(tokens, side), scores.device) for tokens in scores.shape[1:])
    return pixel_adaptive(down @ scores @ along.T, image)


def pixel_adaptive(scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Each pixel's scores become the mean of its neighbours', most of all of those that look alike, ten times over.

    scores: float32 [K, H, W]; so is the result. image: float32 [3, H, W] in [−1, 1]. Weights are those of
    `neighbour_weights`, so that no score leaves the range of its own proposal (the maximum principle), and a proposal
    that is zero stays so. Beyond the image its outermost pixels are repeated.
    """
    weights = neighbour_weights(image)
    _, height, width = image.shape
    rows = BAND_ROWS if scores.device.type == "cpu" else height
    for _ in range(ITERATIONS):
        around, scores = _padded(scores), torch.zeros_like(scores)
        for top in range(0, height, rows):
            band, weights_here = scores[:, top : top + rows], weights[:, top : top + rows]
            for weight, (y, x) in zip(weights_here, OFFSETS, strict=True):
                band.addcmul_(_window(around, top + y, x, band.shape[1], width), weight)
    return scores


def neighbour_weights(image: torch.Tensor) -> torch.Tensor:
    """float32 [N, H, W], ≥ 0, of a float32 [3, H, W] image: what each neighbour counts, 1 in all at every pixel.

    The softmax over a pixel's neighbours of −mean over colours of (difference / (0.3 σ))², σ the standard deviation of
    that colour over them, and a hundredth of the same form for their distances. The authors leave it at 1.01 in all.
    """
    _, height, width = image.shape
    around = _padded(image)

    def difference(offset: tuple[int, int]) -> torch.Tensor:
        return _window(around, *offset, height, width) - image

    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    for offset in OFFSETS:
        total += difference(offset)
        squares += difference(offset).square()
    variance = (squares - total.square() / len(OFFSETS)) / (len(OFFSETS) - 1)
    scale = variance.clamp_min(FLAT**2).sqrt() * BANDWIDTH
    weights = image.new_empty(len(OFFSETS), height, width)
    for unlike, offset in zip(weights, OFFSETS, strict=True):
        torch.mean((difference(offset) / scale).square(), dim=0, out=unlike)
    weights = torch.softmax(weights.neg_(), dim=0, out=weights)
    distances = torch.tensor(OFFSETS, dtype=torch.float32).norm(dim=1)
    near = torch.softmax(-(distances / (distances.std() * BANDWIDTH)).square(), dim=0)
    weights += NEARNESS * to_device(near, image.device)[:, None, None]
    return weights.div_(1 + NEARNESS)


def _padded(maps: torch.Tensor) -> torch.Tensor:
    return F.pad(maps[None], (REACH,) * 4, mode="replicate")[0]


def _window(padded: torch.Tensor, top: int, left: int, rows: int, columns: int) -> torch.Tensor:
    """Rows and columns from there on, counted in the map before it was padded."""
    return padded[:, REACH + top : REACH + top + rows, REACH + left : REACH + left + columns]
