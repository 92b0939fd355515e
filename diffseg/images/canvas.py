"""Fit an image of any size into the square that the model reads, and record where the image lies in it.

Axes: H and W pixels of the image, S pixels of the square, h and w tokens of a grid.
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
MAX_PIXELS_SENT = 2**22
"""Largest image that is resized on the device, in pixels. A larger one takes so long to decode that resizing it there
gains little, and the images that wait for the model would take too much memory."""
MAX_REDUCTION = 16
"""Largest reduction of a side on the device. CUDA's filter refuses reductions that exceed its shared memory."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where an image that has yet to be resized goes in the model's square.

    Attributes:
        side: Side of the square, S, in pixels.
        top: First row of the image in the square.
        left: First column of the image in the square.
        rows: Height of the resized image in pixels.
        columns: Width of the resized image in pixels.
        antialias: Whether to filter while resizing.
    """

    side: int
    top: int
    left: int
    rows: int
    columns: int
    antialias: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelInput:
    """An image as the model reads it.

    Attributes:
        pixels: float32 [3, S, S] in [−1, 1]; with `placement`, uint8 [h, w, 3], which is resized on the device.
        content: The part of the square that the image fills, as shares of S, 0 to 1.
        region: The part of the image that `content` shows, in pixels; the rest was cropped away.
        size: Height and width of the image in pixels.
        detail: float32 [3, 2 S, 2 S], the same at twice the resolution; None unless the attention is also computed on
            crops.
        prompt: The names of the image's segments as a prompt; None unless segments are named.
        placement: Where the resized `pixels` go in the square; None if `pixels` already are the square.
    """

    pixels: torch.Tensor
    content: Box
    region: Box
    size: tuple[int, int]
    detail: torch.Tensor | None = None
    prompt: Prompt | None = None
    placement: Placement | None = None

    @property
    def region_size(self) -> tuple[int, int]:
        """Height and width of the region in pixels."""
        return int(self.region.bottom - self.region.top), int(self.region.right - self.region.left)

    def content_on_grid(self, grid: tuple[int, int]) -> Box:
        """Return the content in tokens of a grid (h, w)."""
        (rows, columns), share = grid, self.content
        return Box(
            top=share.top * rows, left=share.left * columns, bottom=share.bottom * rows, right=share.right * columns
        )


def fit_image(image: np.ndarray, side: int, fit: Fit, *, antialias: bool = True, on_device: bool = False) -> ModelInput:
    """Fit an image into a square.

    Args:
        image: uint8 [H, W, 3].
        side: Side of the square in pixels.
        fit: "resize" stretches the image, "letterbox" keeps its proportions and pads it with grey, and "crop" takes its
            centre square.
        antialias: Whether to filter while resizing, with Pillow. Without it, values are interpolated bilinearly.
        on_device: Whether to leave resizing to `diffseg.images.device_resize.squares_of`. Images that are too
            large for that are resized here.
    """
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
    placement = None
    if on_device:
        if not _suits_device(image, rows, columns):
            image = _resize(image, rows, columns, antialias=antialias)
        pixels = torch.from_numpy(np.array(image, order="C"))
        placement = Placement(side=side, top=top, left=left, rows=rows, columns=columns, antialias=antialias)
    else:
        canvas = np.full((side, side, 3), PAD, dtype=np.uint8)
        canvas[top : top + rows, left : left + columns] = _resize(image, rows, columns, antialias=antialias)
        # Contiguous, because a batch is stacked in one thread, which would take ten times as long otherwise.
        pixels = torch.from_numpy(canvas).permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1)
    return ModelInput(pixels=pixels, content=content, region=region, size=(height, width), placement=placement)


def _suits_device(image: np.ndarray, rows: int, columns: int) -> bool:
    """Return whether an image should be sent to the device in its original size."""
    height, width = image.shape[:2]
    is_small = height * width <= MAX_PIXELS_SENT and height <= MAX_REDUCTION * rows and width <= MAX_REDUCTION * columns
    return is_small and min(rows, columns) > 1  # torch's filter is wrong (2.13, CPU) where a result is one pixel wide


def _resize(image: np.ndarray, rows: int, columns: int, *, antialias: bool) -> np.ndarray:
    """Resize uint8 [H, W, 3]; the result is uint8 as well."""
    if image.shape[:2] == (rows, columns):
        return image
    if antialias:
        return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(np.array(image, dtype=np.float32, order="C")).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, (rows, columns), mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
