"""Label maps of generated images, from the signals that were recorded while they were sampled.

Axes: B images of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from diffseg.attention.maps import Grid, SelfAttention
from diffseg.generation.agreement import Agreement, agreement_of
from diffseg.generation.settings import GenerationSettings
from diffseg.images.canvas import ModelInput
from diffseg.method.decide import Region, decide_images
from diffseg.method.decision import Decision
from diffseg.method.proposals import aggregate_attention
from diffseg.method.signals import Need, Scores, Signals
from diffseg.method.stages import classes_to_segments, run_stages, stages_of
from diffseg.model.backbone import Backbone, Step
from diffseg.pending import NonFiniteError, PendingBatch
from diffseg.segmentation import IGNORE, Segmentation
from diffseg.settings import SegmenterSettings

RECORDED = frozenset({"self_attention", "cross_attention"})
"""Signals that sampling records."""


class Mask(NamedTuple):
    """The label map of a generated image, and by class its threshold and agreement (`GeneratedImage`)."""

    segmentation: Segmentation
    threshold: Mapping[str, float]
    agree_iou: Mapping[str, float]


class MaskMaker:
    """Runs the stages of a method on the signals of generated images."""

    def __init__(self, backbone: Backbone, settings: GenerationSettings, segmenter: SegmenterSettings) -> None:
        """Prepare the stages.

        Args:
            backbone: The model.
            settings: Settings of the generation.
            segmenter: Settings of the stages, whose method is replaced.

        Raises:
            ValueError: A stage reads something that sampling does not record.
        """
        half = settings.uncertain / 2
        names = segmenter.segment_names
        self.thresholds = dataclasses.replace(names, background_below=0.5 - half, ignore_below=0.5 + half)
        self.settings = dataclasses.replace(segmenter, method=settings.method)
        tau = segmenter.merging.tau or backbone.checkpoint.tau
        self.stages = stages_of(settings.method, self.settings, tau)
        self.needs = frozenset[Need]().union(*(stage.needs for stage in self.stages))
        if unrecorded := [stage.name for stage in self.stages if not stage.needs <= RECORDED]:
            raise ValueError(
                f"method {','.join(settings.method)}: stage {unrecorded[0]} reads more than attention, which is all "
                "that is recorded while images are generated; label the images afterwards"
            )

    def aggregate(self, attention: SelfAttention, count: int) -> tuple[torch.Tensor, Grid, torch.Tensor]:
        """Aggregate attention in place: image by image for the first `count` images on a CPU, else the whole batch."""
        finest = attention.maps[attention.finest]
        if finest.device.type != "cpu":
            return aggregate_attention(attention, self.settings, overwrite=True)
        images = [attention.of_images(image, image + 1) for image in range(count)]
        finite = [aggregate_attention(image, self.settings, overwrite=True)[2] for image in images]
        return finest[:count], attention.finest, torch.cat(finite)

    @torch.inference_mode()
    def label(self, signals: Signals, inputs: Sequence[ModelInput], step: Step) -> list[Mask | NonFiniteError]:
        """Return the label map of each image, or an error for an image that is not finite."""
        on_cpu = signals.self_attention.device.type == "cpu"
        decisions: list[Decision] = []
        agreements: list[Agreement] = []
        is_class_method = False
        for start in range(0, len(inputs), 1 if on_cpu else len(inputs)):
            stop = start + 1 if on_cpu else len(signals.finite)
            part = signals.of_images(start, stop)
            scores = run_stages(self.stages, part, step)
            names = self.settings.segment_names
            if scores.names is not None:
                with step("agree"):
                    is_class_method = scores.of_classes
                    agreement, scores = agreement_of(part, scores)
                    agreements.append(agreement)
                names = self.thresholds if is_class_method else names
            with step("decide"):
                segments = classes_to_segments(scores, names)
                decisions += _decide(segments, inputs[start:stop], keep_margins=self.settings.min_area > 0)
        results = PendingBatch(
            inputs=inputs,
            decisions=decisions,
            finite=signals.finite,
            min_area=self.settings.min_area,
            merge_names=self.settings.segment_names.merge_names,
        ).results()
        if not agreements:
            return [result if isinstance(result, NonFiniteError) else Mask(result, {}, {}) for result in results]
        thresholds, ious = (torch.cat([*parts]).tolist() for parts in zip(*agreements, strict=True))
        masks: list[Mask | NonFiniteError] = []
        for result, model_input, of_image, agree in zip(results, inputs, thresholds, ious, strict=False):
            if isinstance(result, NonFiniteError):
                masks.append(result)
                continue
            assert model_input.prompt is not None
            classes = model_input.prompt.names
            segmentation = without_nameless(result) if is_class_method else result
            masks.append(
                Mask(segmentation, dict(zip(classes, of_image, strict=False)), dict(zip(classes, agree, strict=False)))
            )
        return masks


def _decide(scores: Scores, inputs: Sequence[ModelInput], *, keep_margins: bool) -> list[Decision]:
    grid = (scores.maps.shape[2], scores.maps.shape[3])
    regions = [Region(image.region_size, image.content_on_grid(grid)) for image in inputs]
    names = None
    if scores.names is not None and scores.name_scores is not None:
        names = scores.names, scores.name_scores
    return decide_images(scores.maps, regions, keep_margins=keep_margins, names=names)


def without_nameless(segmentation: Segmentation) -> Segmentation:
    """Give pixels of segments without a name, which are uncertain, the label `IGNORE`, and number the others anew."""
    named = [segment for segment in segmentation.segments if segment.name is not None]
    if len(named) == len(segmentation.segments):
        return segmentation
    numbers = np.full(2**16, IGNORE, dtype=np.uint16)
    for number, segment in enumerate(named):
        numbers[segment.id] = number
    segments = tuple(dataclasses.replace(segment, id=number) for number, segment in enumerate(named))
    return dataclasses.replace(segmentation, labels=numbers[segmentation.labels], segments=segments)
