"""What the method computes on its way from an image to a label map: functions for research, with a stable interface.

Each function takes a `Segmenter`, whose model and settings it uses, and one image. The arrays are in host memory.

Axes: H and W pixels, h and w tokens of a grid, P = h·w positions of the finest grid, K proposals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from diffseg.attention.maps import Grid
from diffseg.images.canvas import ModelInput
from diffseg.images.device_resize import squares_of
from diffseg.method.signals import Signals
from diffseg.method.stages import run_stages
from diffseg.model.backbone import no_step
from diffseg.model.text import prompt_of_names
from diffseg.segmenter import ImageLike, Segmenter, as_rgb

__all__ = ["aggregated_attention", "attention_maps", "proposals"]


def attention_maps(segmenter: Segmenter, image: ImageLike) -> dict[Grid, np.ndarray]:
    """Return the self-attention of an image at each resolution of the UNet.

    The image is read without a prompt, once, or twice with the setting `flip`; the setting `crops` has no effect.

    Args:
        segmenter: The model and its settings: size of the input, timestep and `flip`.
        image: A path, bytes, a PIL image or uint8 [H, W, 3].

    Returns:
        {(h, w): float32 [h·w, h·w]}, the mean over the heads and layers of the resolution. Row q is the distribution of
        position q's attention over all positions, in the order of rows, and sums to 1.

    Raises:
        ImageError: The image cannot be decoded.
    """
    pixels = squares_of([_prepared(segmenter, image, None)], segmenter.backbone.checkpoint.vae.device)
    attention = segmenter.recorder.run_pass(pixels, None, no_step).self_attention
    return {grid: maps[0].float().cpu().numpy() for grid, maps in attention.maps.items()}


def aggregated_attention(
    segmenter: Segmenter, image: ImageLike, names: Sequence[str] | None = None
) -> tuple[np.ndarray, Grid]:
    """Return the self-attention of an image, aggregated over resolutions (DiffSeg section 3.2, equations 2 and 3).

    Args:
        segmenter: The model and its settings, with `weights`, `flip` and `crops`.
        image: A path, bytes, a PIL image or uint8 [H, W, 3].
        names: Names that segments may get, if a stage of the method names them.

    Returns:
        float32 [P, P], whose rows sum to 1, and the grid (h, w) of the P positions.

    Raises:
        ImageError: The image cannot be decoded.
    """
    signals = _signals(segmenter, image, names)
    return signals.self_attention[0].cpu().numpy(), signals.grid


def proposals(segmenter: Segmenter, image: ImageLike, names: Sequence[str] | None = None) -> np.ndarray:
    """Return the scores of the proposals of an image, as the first proposing stage of the method returns them.

    Args:
        segmenter: The model and its settings.
        image: A path, bytes, a PIL image or uint8 [H, W, 3].
        names: Names that segments may get, if a stage of the method names them.

    Returns:
        float32 [K, h, w], at least 0: how strongly each position belongs to each proposal. In the label map the highest
        score wins, after later stages and bilinear upsampling; a proposal may win nowhere.

    Raises:
        ImageError: The image cannot be decoded.
        ValueError: No stage of the method returned scores.
    """
    signals = _signals(segmenter, image, names)
    with torch.inference_mode():
        scores = run_stages(segmenter.stages, signals, until_proposed=True)
    return scores.maps[0].cpu().numpy()


def _signals(segmenter: Segmenter, image: ImageLike, names: Sequence[str] | None) -> Signals:
    return segmenter.attention_of([_prepared(segmenter, image, names)]).of_images(0, 1)


def _prepared(segmenter: Segmenter, image: ImageLike, names: Sequence[str] | None) -> ModelInput:
    return segmenter.prepare(as_rgb(image), None if names is None else prompt_of_names(names))
