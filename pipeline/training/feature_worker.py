"""Run the frozen model on images of a run and store the features that an affinity is fitted to, shard by shard."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from pipeline.output.commit import LabelShard
from pipeline.output.reader import label_rows
from pipeline.output.rows import decode_mask
from pipeline.output.source_images import read_source_images
from pipeline.readers.samples import Shard
from pipeline.settings import LabelSettings
from pipeline.storage import Storage
from pipeline.training.settings import AffinityKind, FitSettings
from pipeline.weights import find_weights


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """Everything a worker needs to start.

    Attributes:
        settings: What is fitted.
        model: The run's model, and how it is loaded.
        timestep: Timestep of the run's passes.
        resolution: Side of the model's square input, in pixels.
        fingerprint: Fingerprint of this fit; features of another fit are not used.
        out: OUT of the run.
        parts: Folder of the features, one file per label shard.
        source: Supplies the storage options for the model.
        image_field: Image field of the run's SRC.
        device: Device of the model.
        threads: CPU threads of each worker.
    """

    settings: FitSettings
    model: LabelSettings
    timestep: int
    resolution: int
    fingerprint: str
    out: Storage
    parts: Storage
    source: Storage
    image_field: str | None
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class FeatureTask:
    """The images of one label shard that are used for a fit.

    Attributes:
        shard: Name of the label shard.
        source: Source shard with the images.
        first: Number of the first image, counted over all tasks.
        count: Number of images.
    """

    shard: LabelShard
    source: Shard
    first: int
    count: int


class FeatureWorker:
    """A worker with the frozen model, which collects the features of one label shard after another."""

    def __init__(self, job: FitJob) -> None:
        weights = find_weights(job.model, job.source)

        import torch

        from diffseg.affinity.state import layers_by_grid
        from diffseg.model.backbone import Backbone
        from diffseg.model.checkpoint import load_checkpoint

        torch.set_num_threads(job.threads)
        with weights.named():
            checkpoint = load_checkpoint(
                weights.model, vae=weights.vae, device=job.device, dtype=getattr(torch, job.model.dtype)
            )
        self.job, self.backbone, self.kind = job, Backbone(checkpoint), kind_module(job.settings.kind)
        self.conditions = {
            "layers": layers_by_grid(checkpoint.unet, job.resolution),
            "conditioning": self.backbone.conditioning(job.resolution),
        }

    def collect(self, task: FeatureTask) -> str:
        """Write the features of a label shard, and return the shard's name."""
        from safetensors.torch import save

        tensors: dict[str, Any] = {}
        problems: list[str] = []
        for number, image, labels in self._images(task, problems):
            pixels = self._pixels(image)
            features = self.kind.collect(
                self.backbone, pixels, labels, timestep=self.job.timestep, seed=self.job.settings.seed + number
            )
            if features is not None:
                tensors |= {f"{number}.{name}": value.contiguous() for name, value in features.items()}
        about = {"problems": problems, **self.conditions}
        metadata = {"fingerprint": self.job.fingerprint} | {name: json.dumps(value) for name, value in about.items()}
        self.job.parts.write_bytes(features_path(task.shard), save(tensors, metadata=metadata))
        return task.shard

    def _pixels(self, image: np.ndarray) -> Any:
        from diffseg.images.canvas import fit_image

        return fit_image(image, self.job.resolution, "resize", antialias=True).pixels[None]

    def _images(self, task: FeatureTask, problems: list[str]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield number, uint8 [H, W, 3] image and int32 [H, W] labels; append unreadable images to `problems`."""
        rows = label_rows(self.job.out, task.shard, ("key", "index", "status", "height", "width", "mask", "segments"))
        ok_rows = (row for row in rows if row["status"] == "ok")
        used = {row["index"]: row for row in itertools.islice(ok_rows, task.count)}
        numbers = {index: task.first + position for position, index in enumerate(used)}
        keys = {index: row["key"] for index, row in used.items()}
        sizes = {index: (row["height"], row["width"]) for index, row in used.items()}
        for index, image in read_source_images(task.source, keys, self.job.out, self.job.image_field, sizes):
            if isinstance(image, str):
                problems.append(image)
            else:
                yield numbers[index], image, target_labels(used[index], self.job.settings.confidence)


def kind_module(kind: AffinityKind) -> ModuleType:
    """Return the module that collects, fits and predicts this kind of affinity."""
    from diffseg.affinity import features, heads

    return {"heads": heads, "features": features}[kind]


def target_labels(row: Mapping[str, Any], confidence: float) -> np.ndarray:
    """Return the labels that an affinity is fitted to.

    Args:
        row: A row with `mask` and `segments`.
        confidence: Lowest confidence of a segment, 0 to 1.

    Returns:
        int32 [H, W]. In a run with names these are class ids, so that two segments of one class belong together;
        otherwise segment ids counted from 1. 0 is the background, and negative labels are ignored: pixels in no segment
        or in a segment below `confidence`.
    """
    from diffseg.affinity.pairs import UNKNOWN

    mask = decode_mask(row["mask"])
    table = np.full(2**16, UNKNOWN, dtype=np.int32)
    for segment in row["segments"]:
        class_id = segment.get("class_id")
        if segment["confidence"] >= confidence:
            table[segment["id"]] = segment["id"] + 1 if class_id is None else class_id
    return table[mask]


def features_path(shard: str) -> str:
    """Return the path of a label shard's features below `FitJob.parts`."""
    return f"{shard}.safetensors"


class CollectedFeatures(NamedTuple):
    """The features of a label shard.

    Attributes:
        tensors: The features of each image, by `NUMBER.NAME`.
        problems: The images that could not be read.
        layers: Names of the self-attention layers that the model has at each resolution.
        conditioning: What besides text conditioned the passes.
    """

    tensors: dict[str, Any]
    problems: list[str]
    layers: dict[str, list[str]]
    conditioning: dict[str, float]


def read_features(job: FitJob, task: FeatureTask) -> CollectedFeatures | None:
    """Return the features of a label shard; None if the file is missing, damaged, or belongs to another fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    from diffseg.safetensors_metadata import read_metadata

    try:
        data = job.parts.read_bytes(features_path(task.shard))
        metadata = read_metadata(data)
        if metadata["fingerprint"] != job.fingerprint:
            return None
        about = [json.loads(metadata[name]) for name in ("problems", "layers", "conditioning")]
        return CollectedFeatures(load(data), *about)
    except (FileNotFoundError, SafetensorError, ValueError, KeyError):
        return None
