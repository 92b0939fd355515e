"""Fit an image of any size into the model's square, and remember where it lies.

Axes: H and W pixels of the image, S pixels of the square.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from diffseg.component_settings import Fit
from diffseg.model.text import Prompt
from diffseg.segmentation import Box

PAD = 127
"""Grey level around a letterboxed image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelInput:
    """pixels: float32 [3, S, S] in [−1, 1]. content: where the image lies in it, as a share of S, 0 to 1.

    region: the pixels of the image (rows and columns) that content shows; the others were cropped away. size: (H, W) of
    the image. detail: float32 [3, 2 S, 2 S], the same at twice the resolution, where windows of it are asked for.
    prompt: what is said of the image, where its segments are named.
    """

    pixels: torch.Tensor
    content: Box
    region: Box
    size: tuple[int, int]
    detail: torch.Tensor | None = None
    prompt: Prompt | None = None

    @property
    def region_size(self) -> tuple[int, int]:
        """Height and width of the region in pixels."""
        return int(self.region.bottom - self.region.top), int(self.region.right - self.region.left)

    def content_on_grid(self, grid: tuple[int, int]) -> Box:
        """The content in tokens of a grid (h, w)."""
        (rows, columns), share = grid, self.content
        return Box(
            top=share.top * rows, left=share.left * columns, bottom=share.bottom * rows, right=share.right * columns
        )


def fit_image(image: np.ndarray, side: int, fit: Fit, *, antialias: bool = True) -> ModelInput:
    """uint8 [H, W, 3] into a square of `side` pixels: stretched, letterboxed with grey, or its centre square."""
    height, width = image.shape[:2]
    region = Box(top=0, left=0, bottom=height, right=width)
    content = Box(top=0, left=0, bottom=1, right=1)
    rows = columns = side
    top = left = 0
    if fit == "crop":
        square = min(height, width)
        y, x = (height - square) // 2, (width - square) // 2
        region = Box(top=y, left=x, bottom=y + square, right=x + square)
        image = image[y : y + square, x : x + square]
    elif fit == "letterbox":
        scale = side / max(height, width)
        rows, columns = (max(1, round(length * scale)) for length in (height, width))
        top, left = (side - rows) // 2, (side - columns) // 2
        content = Box(top=top / side, left=left / side, bottom=(top + rows) / side, right=(left + columns) / side)
    canvas = np.full((side, side, 3), PAD, dtype=np.uint8)
    canvas[top : top + rows, left : left + columns] = _resized(image, rows, columns, antialias=antialias)
    pixels = torch.from_numpy(canvas).permute(2, 0, 1).float().div_(127.5).sub_(1)
    return ModelInput(pixels=pixels, content=content, region=region, size=(height, width))


def _resized(image: np.ndarray, rows: int, columns: int, *, antialias: bool) -> np.ndarray:
    if image.shape[:2] == (rows, columns):
        return image
    if antialias:
        return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(np.array(image, dtype=np.float32, order="C")).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, (rows, columns), mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
