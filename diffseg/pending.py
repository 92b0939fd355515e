"""A batch that was sent to the device, and its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffseg.images.canvas import ModelInput
from diffseg.method.absorb import absorb
from diffseg.method.decide import Decision, to_segmentation
from diffseg.segmentation import Segmentation


class NonFiniteError(ValueError):
    """The model gave a number that is not finite for an image: a sign of half precision overflowing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PendingBatch:
    """A batch that was sent through the model. The device may still be at work on it."""

    canvases: Sequence[ModelInput]
    decisions: Sequence[Decision]
    finite: torch.Tensor
    min_area: float = 0.0

    def results(self) -> list[Segmentation | NonFiniteError]:
        """One transfer from the device for the whole batch, which waits for it."""
        fields = [[d.stats, d.labels] + ([] if d.margins is None else [d.margins]) for d in self.decisions]
        finite, *arrays = _transferred([self.finite, *(part for parts in fields for part in parts)])
        found: list[Segmentation | NonFiniteError] = []
        for canvas, whole, parts in zip(self.canvases, finite, fields, strict=False):
            (stats, labels, *margins), arrays = arrays[: len(parts)], arrays[len(parts) :]
            if not whole:
                found.append(NonFiniteError("self-attention is not finite; try dtype float32 or bfloat16"))
                continue
            if margins:
                labels, stats = absorb(labels, stats, margins[0], self.min_area)
            names = canvas.prompt.names if canvas.prompt else ()
            found.append(
                to_segmentation(labels=labels, stats=stats, size=canvas.size, region=canvas.region, names=names)
            )
        return found


def _transferred(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """The tensors as arrays of this process, moved at once."""
    packed = torch.cat([tensor.flatten().view(torch.uint8) for tensor in tensors]).cpu().numpy()
    arrays, start = [], 0
    for tensor in tensors:
        stop = start + tensor.numel() * tensor.element_size()
        kind = np.dtype(str(tensor.dtype).removeprefix("torch."))
        arrays.append(packed[start:stop].view(kind).reshape(tensor.shape))
        start = stop
    return arrays
