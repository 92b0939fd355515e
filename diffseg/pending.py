"""A batch that was sent to the device, and its results.

Axes: B images in the batch.
"""

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
    """The model computed a number that is not finite for an image: a sign that half precision overflowed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PendingBatch:
    """A batch that was sent through the model. The device may still be computing it.

    Attributes:
        inputs: The prepared images, without padding.
        decisions: The label map of each image, on the device.
        finite: bool [B or more], whether the attention of each image is finite, on the device.
        min_area: Share of the image below which connected pieces are merged into a neighbour; 0 keeps all pieces.
    """

    inputs: Sequence[ModelInput]
    decisions: Sequence[Decision]
    finite: torch.Tensor
    min_area: float = 0.0

    def results(self) -> list[Segmentation | NonFiniteError]:
        """Wait for the device, fetch the whole batch in one transfer, and return a label map or an error per image."""
        tensors = [[d.stats, d.labels] + ([] if d.margins is None else [d.margins]) for d in self.decisions]
        finite, *arrays = _fetch([self.finite, *(tensor for of_image in tensors for tensor in of_image)])
        results: list[Segmentation | NonFiniteError] = []
        for model_input, is_finite, of_image in zip(self.inputs, finite, tensors, strict=False):
            (stats, labels, *margins), arrays = arrays[: len(of_image)], arrays[len(of_image) :]
            if not is_finite:
                results.append(NonFiniteError("self-attention is not finite; try dtype float32 or bfloat16"))
                continue
            if margins:
                labels, stats = absorb(labels, stats, margins[0], self.min_area)
            names = model_input.prompt.names if model_input.prompt else ()
            results.append(
                to_segmentation(
                    labels=labels, stats=stats, size=model_input.size, region=model_input.region, names=names
                )
            )
        return results


def _fetch(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Return the tensors as arrays in host memory, after a single transfer."""
    packed = torch.cat([tensor.flatten().view(torch.uint8) for tensor in tensors]).cpu().numpy()
    arrays, start = [], 0
    for tensor in tensors:
        stop = start + tensor.numel() * tensor.element_size()
        dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
        arrays.append(packed[start:stop].view(dtype).reshape(tensor.shape))
        start = stop
    return arrays
