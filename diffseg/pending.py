"""A batch that was sent to the device, and its results.

Axes: B images in the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from diffseg.devices import HostCopy
from diffseg.images.canvas import ModelInput
from diffseg.method.absorb import absorb
from diffseg.method.decision import Decision, Stat, to_segmentation
from diffseg.method.leaves import LeafSignals, levels_of, segments_on_grid
from diffseg.method.merge_names import merge_same_names
from diffseg.method.reference_names import SegmentNaming
from diffseg.method.segment_features import labelled_region, pool
from diffseg.segmentation import Segmentation
from diffseg.variants.correlation import correlations_of
from diffseg.variants.record import VariantResponse


class NonFiniteError(ValueError):
    """The model computed a number that is not finite for an image: a sign that half precision overflowed."""


@dataclass(kw_only=True, eq=False)
class PendingBatch:
    """A batch that was sent through the model. The device may still be computing its results and copying them.

    Attributes:
        inputs: The prepared images, without padding.
        decisions: The label map of each image, on the device.
        finite: bool [B or more], whether the attention of each image is finite, on the device.
        min_area: Share of the image below which connected pieces are merged into a neighbour; 0 keeps all pieces.
        merge_names: Whether segments of the same name are merged into one.
        leaves: What the levels of each image are made of, on the device; empty unless levels are requested.
        threshold: The threshold of the segments, in the unit of the distances between leaves.
        features: The features of each image's positions, float32 [E, h, w] on the device, see
            `diffseg.method.segment_features`; empty unless features are requested.
        naming: Names the segments by their features; None if a stage has named them, or if they get no names.
        response: How the positions of the images respond to noise; None unless the score of quality is requested.
    """

    inputs: Sequence[ModelInput]
    decisions: Sequence[Decision]
    finite: torch.Tensor
    min_area: float = 0.0
    merge_names: bool = False
    leaves: Sequence[LeafSignals] = ()
    threshold: float = 0.0
    features: Sequence[torch.Tensor] = ()
    naming: SegmentNaming | None = None
    response: VariantResponse | None = None

    def __post_init__(self) -> None:
        """Begin to copy the results to host memory."""
        parts = [[d.stats, d.labels] if d.margins is None else [d.stats, d.labels, d.margins] for d in self.decisions]
        self._parts_of_image = len(parts[0])
        images = len(self.inputs)
        of_leaves = [(leaf.scores, leaf.fine_scores, leaf.distances) for leaf in self.leaves[:images]]
        features = self.features[:images]
        units = () if self.response is None else self.response.units[:images]
        self._copy = HostCopy(
            [self.finite, *chain.from_iterable(parts), *chain.from_iterable(of_leaves), *features, *units]
        )

    def results(self) -> list[Segmentation | NonFiniteError]:
        """Wait for the results, and return a label map or an error for each image."""
        finite, *arrays = self._copy.arrays()
        features: list[np.ndarray | None] = [None] * len(self.inputs)
        units = features
        if self.response is not None:
            arrays, units = arrays[: -len(self.inputs)], [*arrays[-len(self.inputs) :]]
        if self.features:
            arrays, features = arrays[: -len(self.inputs)], [*arrays[-len(self.inputs) :]]
        count, decided = self._parts_of_image, len(self.decisions) * self._parts_of_image
        images = [arrays[start : start + count] for start in range(0, decided, count)]
        leaves = [arrays[start : start + 3] for start in range(decided, len(arrays), 3)] or [[]] * len(images)
        of_images = zip(self.inputs, finite, images, leaves, features, units, strict=False)
        return [self._result(*image) for image in of_images]

    def _result(
        self,
        model_input: ModelInput,
        is_finite: bool,
        arrays: Sequence[np.ndarray],
        leaves: Sequence[np.ndarray],
        features: np.ndarray | None,
        units: np.ndarray | None,
    ) -> Segmentation | NonFiniteError:
        if not is_finite:
            return NonFiniteError("self-attention is not finite; try dtype float32 or bfloat16")
        stats, labels, *margins = arrays
        if margins:
            labels, stats = absorb(labels, stats, margins[0], self.min_area)
        if self.merge_names and len(stats) > Stat.NAME:
            labels, stats = merge_same_names(labels, stats)
        names = model_input.prompt.names if model_input.prompt else ()
        segmentation = to_segmentation(
            labels=labels, stats=stats, size=model_input.size, region=model_input.region, names=names
        )
        if features is not None:
            content = model_input.content_on_grid((features.shape[1], features.shape[2]))
            pooled = pool(features, labelled_region(segmentation.labels, model_input.region), content)
            segmentation = dataclasses.replace(segmentation, features=pooled)
            if self.naming is not None:
                segmentation = self.naming.name(segmentation, pooled, names)
        if units is not None:
            assert self.response is not None
            grid = self.response.grid
            on_grid = segments_on_grid(segmentation.labels, grid, model_input.content_on_grid(grid), model_input.region)
            within, between = correlations_of(on_grid.ravel(), units)
            segmentation = dataclasses.replace(segmentation, within_rho=within, between_rho=between)
        if not leaves:
            return segmentation
        scores, fine_scores, distances = leaves
        grid = (scores.shape[1], scores.shape[2])
        levels = levels_of(
            segmentation,
            scores,
            fine_scores,
            distances,
            threshold=self.threshold,
            content=model_input.content_on_grid(grid),
            region=model_input.region,
        )
        return dataclasses.replace(segmentation, levels=levels)
