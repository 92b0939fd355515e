"""Label images with a trained network, which takes the place of `diffseg.Segmenter` in a run.

Axes: B images in the batch, D outputs of the network, h and w of its output, S pixels of its square input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from diffseg.images.canvas import ModelInput, fit_image
from diffseg.method.decide import Region, decide_images
from diffseg.method.decision import Decision
from diffseg.method.naming import BACKGROUND_INDEX
from diffseg.model.backbone import Step, no_step
from diffseg.model.text import Prompt, prompt_of_names
from diffseg.pending import NonFiniteError, PendingBatch
from diffseg.segmentation import Segmentation
from pipeline.networks.files import load_network
from pipeline.networks.regions import region_scores
from pipeline.storage import Storage


class _NetworkBatch(PendingBatch):
    """A batch whose errors speak of the network instead of self-attention."""

    def results(self) -> list[Segmentation | NonFiniteError]:
        """Wait for the results, and return a label map or an error for each image."""
        error = NonFiniteError("the output of the network is not finite; train it with a lower learning rate")
        return [error if isinstance(result, NonFiniteError) else result for result in super().results()]


class NetworkSegmenter:
    """A trained network with the part of the interface of `diffseg.Segmenter` that labels images.

    Attributes:
        network: The network in evaluation mode. It maps float32 [B, 3, S, S] in [−1, 1] to [B, D, h, w]: the scores of
            D classes before the softmax, or an embedding of each position in D dimensions.
        config: config.json: target, size S, dimensions D and `class_names` of the network, and what rebuilds it.
        class_names: Name of each class by its number, the background first; empty if the network learned segments.
        batch_size: Images in one pass of the network.
        resolution: S.
        needs: Signals of Stable Diffusion that the network needs: none.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, network: nn.Module, config: dict[str, Any], *, device: str = "cpu", batch_size: int = 1) -> None:
        self.network, self.config, self.device = network.to(device), config, device
        self.class_names = tuple(config["class_names"])
        self.batch_size, self.resolution = batch_size, int(config["size"])
        self._names = prompt_of_names(self.class_names[1:]) if config["target"] == "classes" else None

    @classmethod
    def load(
        cls, model: str, options: Mapping[str, Any] | None = None, *, device: str = "cpu", batch_size: int = 1
    ) -> NetworkSegmenter:
        """Load the network that `diffseg train` has written.

        Args:
            model: MODEL, a folder or URL.
            options: Storage options for fsspec.
            device: Torch device.
            batch_size: Images in one pass of the network.

        Raises:
            SourceError: MODEL holds no trained network.
        """
        return cls(*load_network(Storage(url=model, options=options)), device=device, batch_size=batch_size)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Segmentation]:
        """Label images, uint8 [H, W, 3] each."""
        inputs = [self.prepare(image) for image in images]
        batches = [inputs[start : start + self.batch_size] for start in range(0, len(inputs), self.batch_size)]
        return [_checked(result) for batch in batches for result in self.launch(batch).results()]

    def prepare(self, image: np.ndarray, prompt: Prompt | None = None) -> ModelInput:
        """Resize a uint8 [H, W, 3] image to the network's square input. The names are those of its own classes."""
        return dataclasses.replace(fit_image(image, self.resolution, "resize"), prompt=self._names)

    @torch.inference_mode()
    def launch(self, inputs: Sequence[ModelInput], step: Step = no_step) -> PendingBatch:
        """Label up to `batch_size` prepared images; short batches are padded, so that all have the same size.

        Segments are numbered consecutively, without gaps for absent classes, and carry the names of their classes.
        """
        padded = [*inputs, *[inputs[-1]] * (self.batch_size - len(inputs))]
        with step("network"):
            output = self.network(torch.stack([each.pixels for each in padded]).to(self.device))[: len(inputs)]
        finite = output.isfinite().flatten(1).all(dim=1)
        regions = [
            Region(each.region_size, each.content_on_grid((output.shape[2], output.shape[3]))) for each in inputs
        ]
        with step("decide"):
            decide = self._decide_regions if self._names is None else self._decide_classes
            decisions = decide(output.nan_to_num(), regions)
        return _NetworkBatch(inputs=inputs, decisions=decisions, finite=finite)

    def launch_each(
        self, batches: Iterable[Sequence[ModelInput]], step: Step = no_step
    ) -> Iterator[PendingBatch | None]:
        """Launch batches in order; an empty batch gives None."""
        for inputs in batches:
            yield self.launch(inputs, step) if inputs else None

    def _decide_regions(self, embedding: torch.Tensor, regions: Sequence[Region]) -> list[Decision]:
        """Cluster the embedding of each image, float32 [B, D, h, w], on the CPU."""
        images = zip(embedding.cpu(), regions, strict=True)
        return [decide_images(region_scores(vectors)[None], [region])[0] for vectors, region in images]

    def _decide_classes(self, logits: torch.Tensor, regions: Sequence[Region]) -> list[Decision]:
        """Give each pixel the class with the highest probability; the name's score is its mean where the class wins."""
        maps = logits.softmax(dim=1)
        wins = torch.nn.functional.one_hot(maps.argmax(dim=1), maps.shape[1]).permute(0, 3, 1, 2)
        scores = (wins * maps).sum(dim=(2, 3)) / wins.sum(dim=(2, 3)).clamp_min(1)
        names = torch.tensor([BACKGROUND_INDEX, *range(maps.shape[1] - 1)], device=maps.device)
        return decide_images(maps, regions, names=(names.expand(len(maps), -1), scores))


def _checked(result: Segmentation | Exception) -> Segmentation:
    """Return a result, or raise the error of an image whose scores are not finite."""
    if isinstance(result, Exception):
        raise result
    return result
