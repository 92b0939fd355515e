"""Send the images of a batch to the device as they were decoded, and fit them into the model's square there.

A square of floats takes about three times as many bytes as a photograph, and resizing with Pillow takes milliseconds of
a CPU for each image. The levels are those of Pillow, except for some values half-way between two levels, which Pillow's
integers and the device's floats may round differently.

Axes: B images of a batch, S pixels of the square, h and w pixels of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from diffseg.images.canvas import PAD, ModelInput


def squares_of(inputs: Sequence[ModelInput], device: torch.device) -> torch.Tensor:
    """Return the squares of a batch, float32 [B, 3, S, S] in [−1, 1].

    They are on `device` if the images have yet to be resized, else in host memory.
    """
    if inputs[0].placement is None:
        return torch.stack([model_input.pixels for model_input in inputs])
    side = inputs[0].placement.side
    squares = torch.full((len(inputs), 3, side, side), float(PAD), device=device)
    sent = _send([model_input.pixels for model_input in inputs], device)
    for square, image, model_input in zip(squares, sent, inputs, strict=True):
        place = model_input.placement
        assert place is not None
        part = square[:, place.top : place.top + place.rows, place.left : place.left + place.columns]
        part.copy_(_resize(image, place.rows, place.columns, antialias=place.antialias))
    return squares.div_(127.5).sub_(1)


def _resize(image: torch.Tensor, rows: int, columns: int, *, antialias: bool) -> torch.Tensor:
    """Resize uint8 [h, w, 3] to whole levels, float32 [3, rows, columns]."""
    levels = image.permute(2, 0, 1)[None].float()
    if levels.shape[2:] == (rows, columns):
        return levels[0]
    if not antialias:
        return F.interpolate(levels, (rows, columns), mode="bilinear", align_corners=False)[0].round_()
    # Pillow changes the width first and then the height, and rounds halves up after each step.
    for size in (levels.shape[2], columns), (rows, columns):
        levels = F.interpolate(levels, size, mode="bilinear", align_corners=False, antialias=True)
        levels = levels.add_(0.5).floor_().clamp_(0, 255)
    return levels[0]


def _send(images: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Copy uint8 tensors to a device in one transfer, which starts from pinned memory on a GPU."""
    sizes = [image.numel() for image in images]
    packed = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    torch.cat([image.flatten() for image in images], out=packed)
    parts = packed.to(device, non_blocking=True).split(sizes)
    return [part.view(image.shape) for part, image in zip(parts, images, strict=True)]
