"""A generator and a worker without a model, whose images follow from the seeds of their requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from diffseg import Segmentation
from diffseg.generation.generator import GeneratedImage
from diffseg.generation.request import GenerationRequest
from diffseg.model.backbone import Step, no_step
from diffseg.pending import NonFiniteError
from diffseg.segmentation import IGNORE, Segment
from pipeline.executor.generate import GenerateWorker
from pipeline.executor.models import LoadedModel
from pipeline.executor.protocol import Job

SIDE = 16


class NoiseGenerator:
    """Images of noise: the upper half is background, the columns of the lower half are the classes.

    The first row of pixels is ignored. A prompt with the word `overflow` gives an error of the model.
    """

    def __init__(self, batch_size: int = 1) -> None:
        self.batch_size = batch_size
        self.batches: list[list[GenerationRequest]] = []

    def generate(
        self, requests: Sequence[GenerationRequest], step: Step = no_step
    ) -> list[GeneratedImage | NonFiniteError]:
        self.batches.append(list(requests))
        with step("sample"):
            return [self._image(request) for request in requests]

    def _image(self, request: GenerationRequest) -> GeneratedImage | NonFiniteError:
        if "overflow" in request.prompt:
            return NonFiniteError("the attention is not finite")
        names = ("background", *request.classes)
        labels = np.zeros((SIDE, SIDE), np.uint16)
        labels[SIDE // 2 :] = 1 + np.arange(SIDE) * len(request.classes) // SIDE
        labels[0] = IGNORE
        segments = tuple(
            Segment(
                id=number,
                area=int((labels == number).sum()),
                bbox=(0, 0, 1, 1),
                confidence=0.5,
                name=name,
                name_score=0.5,
            )
            for number, name in enumerate(names)
        )
        return GeneratedImage(
            image=np.random.default_rng(request.seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8),
            segmentation=Segmentation(labels=labels, segments=segments, confidence=0.5),
            threshold=dict.fromkeys(request.classes, 0.4),
            agree_iou=dict.fromkeys(request.classes, 0.75),
        )


class NoiseWorker(GenerateWorker):
    """A worker with a `NoiseGenerator`."""

    def _load_model(self, job: Job) -> LoadedModel:
        self.generator = cast(Any, NoiseGenerator())
        return LoadedModel(
            segmenter=self.generator,
            sha256="noise",
            resolved={"tau": [1.0], "timestep": 300, "resolution": SIDE, "method": ["cross"]},
            about={"method": "cross"},
        )
