"""What the embedded model must beat: no segmentation, clusters of colour and place, and itself without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from diffusers import AutoencoderTiny
from scipy.cluster.vq import kmeans2

from diffseg.tiny.export import export
from diffseg.tiny.model import build

__all__ = ["cluster_colours", "one_region", "to_lab", "write_untrained"]

# CIE XYZ of the sRGB primaries, rows divided by the D65 white point.
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
XYZ /= XYZ.sum(1, keepdims=True)


def one_region(image: np.ndarray) -> np.ndarray:
    """The whole image as one region: uint8 [H, W, 3] -> uint16 [H, W]."""
    return np.zeros(image.shape[:2], np.uint16)


def to_lab(image: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB pixels: uint8 [H, W, 3] -> float64 [H, W, 3], L in [0, 100]."""
    encoded = image / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    ratio = linear @ XYZ.T
    cube = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [
            116 * cube[..., 1] - 16,
            500 * (cube[..., 0] - cube[..., 1]),
            200 * (cube[..., 1] - cube[..., 2]),
        ],
        axis=-1,
    )


def cluster_colours(image: np.ndarray, *, clusters: int = 8, reach: float = 20.0, seed: int = 0) -> np.ndarray:
    """k-means on L*a*b* and position: uint8 [H, W, 3] -> uint16 [H, W]. The defaults are the best on validation scenes.

    Args:
        image: any size; colours are averaged over 4x4 pixels first, as the model's latents are over 8x8.
        clusters: k.
        reach: the image's side in units of L*: the larger, the more compact the clusters.
        seed: of the k-means++ initialisation.
    """
    height, width = (side // 4 for side in image.shape[:2])
    lab = to_lab(image)[: height * 4, : width * 4].reshape(height, 4, width, 4, 3).mean((1, 3))
    y, x = np.mgrid[:height, :width] / max(height, width) * reach
    features = np.concatenate([lab, y[..., None], x[..., None]], -1).reshape(-1, 5)
    _, labels = kmeans2(features, clusters, iter=20, minit="++", missing="warn", seed=seed)
    grid = labels.reshape(height, width).astype(np.uint16)
    rows = np.minimum(np.arange(image.shape[0]) // 4, height - 1)
    columns = np.minimum(np.arange(image.shape[1]) // 4, width - 1)
    return grid[rows[:, None], columns]


def write_untrained(folder: Path, checkpoint: Path, *, seed: int) -> None:
    """Write a checkpoint with a UNet of random weights; the VAE stays trained, which can only help this baseline."""
    _, unet, scheduler = build(seed)
    vae = AutoencoderTiny.from_pretrained(checkpoint / "vae", use_safetensors=True)
    export(vae, unet, scheduler, folder, recipe={"untrained": True, "seed": seed})
