"""Label maps of generated images, from the signals that were recorded while they were sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from diffseg.attention.maps import Grid, SelfAttention
from diffseg.generation.agreement import Agreement, agreement_of, scale_to_half
from diffseg.generation.settings import GenerationSettings
from diffseg.images.canvas import ModelInput
from diffseg.method.decision import Decision
from diffseg.method.name_stages import classes_to_segments
from diffseg.method.signals import Need, Signals
from diffseg.method.stages import Stage, run_stages, stages_of
from diffseg.model.backbone import Backbone, Step
from diffseg.pending import NonFiniteError, PendingBatch
from diffseg.segmentation import IGNORE, Segmentation
from diffseg.segmenter import decide_segments
from diffseg.settings import NAMING, SegmenterSettings
from diffseg.signal_recorder import aggregate_batch

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
            ValueError: A stage or a setting needs something that sampling does not record.
        """
        self.settings = dataclasses.replace(segmenter, method=settings.method)
        self.stages = stages_of(settings.method, self.settings, segmenter.merging.tau or backbone.checkpoint.tau)
        self.needs = frozenset[Need]().union(*(stage.needs for stage in self.stages))
        _check_is_recorded(self.stages, self.settings)
        self.finds_classes = settings.method[0] in NAMING
        self.names = segmenter.segment_names
        if self.finds_classes:
            half = settings.uncertain / 2
            self.names = dataclasses.replace(self.names, background_below=0.5 - half, ignore_below=0.5 + half)

    def aggregate(self, attention: SelfAttention, count: int) -> tuple[torch.Tensor, Grid, torch.Tensor]:
        """Aggregate the self-attention of a batch, see `diffseg.signal_recorder.aggregate_batch`."""
        return aggregate_batch(attention, self.settings, count)

    @torch.inference_mode()
    def label(self, signals: Signals, inputs: Sequence[ModelInput], step: Step) -> list[Mask | NonFiniteError]:
        """Return the label map of each image, or an error for an image that is not finite.

        Args:
            signals: Signals of the images, followed on devices other than the CPU by those of padding.
            inputs: The images with their classes as prompts.
            step: Timer of steps.
        """
        # As in `diffseg.segmenter`: on a CPU each image has as many proposals as it needs.
        images_at_once = 1 if signals.self_attention.device.type == "cpu" else len(signals.finite)
        decisions: list[Decision] = []
        agreements: list[Agreement] = []
        for start in range(0, len(inputs), images_at_once):
            part = signals.of_images(start, start + images_at_once)
            scores = run_stages(self.stages, part, step)
            if scores.names is not None:
                with step("agree"):
                    agreements.append(agreement_of(part, scores))
                    if self.finds_classes:
                        assert part.name_counts is not None
                        scores = scale_to_half(scores, agreements[-1].thresholds, part.name_counts)
            with step("decide"):
                segments = classes_to_segments(scores, self.names)
                decisions += decide_segments(segments, inputs[start : start + images_at_once], self.settings)
        results = PendingBatch(
            inputs=inputs,
            decisions=decisions,
            finite=signals.finite,
            min_area=self.settings.min_area,
            merge_names=self.settings.segment_names.merge_names,
        ).results()
        # Without names there are no thresholds. Those of padding, at the end, are dropped.
        thresholds = [row for part in agreements for row in part.thresholds.tolist()] or [[]] * len(inputs)
        ious = [row for part in agreements for row in part.iou.tolist()] or [[]] * len(inputs)
        return [self._mask(*image) for image in zip(results, inputs, thresholds, ious, strict=False)]

    def _mask(
        self,
        result: Segmentation | NonFiniteError,
        model_input: ModelInput,
        thresholds: Sequence[float],
        ious: Sequence[float],
    ) -> Mask | NonFiniteError:
        if isinstance(result, NonFiniteError):
            return result
        classes = model_input.prompt.names if model_input.prompt else ()
        threshold, agree_iou = (dict(zip(classes, values, strict=False)) for values in (thresholds, ious))
        return Mask(without_nameless(result) if self.finds_classes else result, threshold, agree_iou)


def _check_is_recorded(stages: Sequence[Stage], settings: SegmenterSettings) -> None:
    if unrecorded := [stage.name for stage in stages if not stage.needs <= RECORDED]:
        raise ValueError(
            f"method {','.join(stage.name for stage in stages)}: stage {unrecorded[0]} reads more than attention, and "
            "nothing else is recorded while images are generated; label the images afterwards"
        )
    names, attention = settings.segment_names, settings.attention
    further = {
        "crops": attention.crops,
        "flip": attention.flip,
        "background_words": names.background_words,
        "vote=goca": names.vote == "goca",
    }
    if wanted := [name for name, value in further.items() if value]:
        raise ValueError(f"{wanted[0]}: is not recorded while images are generated; label the images afterwards")


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
