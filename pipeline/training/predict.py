"""Label images with a trained network, in the format of a label run, so that all commands can read the result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from diffseg.images.canvas import ModelInput, fit_image
from diffseg.method.decide import decide_on_device
from diffseg.model.backbone import Step, no_step
from diffseg.model.text import Prompt
from diffseg.pending import PendingBatch
from diffseg.segmentation import Segmentation
from pipeline.errors import RunRefused
from pipeline.label import label_shard
from pipeline.output.fence import Fence, take_over
from pipeline.output.letter_case import refuse_names_that_collide
from pipeline.output.listing import Listing, delete_other_listings
from pipeline.output.manifest import Manifest, read_manifest, versions
from pipeline.output.plan import make_plan
from pipeline.output.reconcile import remove_gone
from pipeline.readers.find import find_files, shards_of
from pipeline.readers.sources import redacted_source
from pipeline.settings import LabelSettings
from pipeline.storage import Storage
from pipeline.training.network import SegmentationNetwork
from pipeline.training.regions import region_scores
from pipeline.training.state import WEIGHTS, load_network


class NetworkSegmenter:
    """A trained network with the part of the interface of `diffseg.Segmenter` that labels images, on the CPU.

    Attributes:
        network: The network in evaluation mode. It maps float32 [B, 3, S, S] in [−1, 1] to [B, D, S / 2, S / 2]: the
            scores of D classes before the softmax, or an embedding of each position in D dimensions.
        config: config.json: target, size S, width and dimensions D of the network, and `class_names`.
        class_names: Name of each class by its number, the background first; empty if the network learned segments.
    """

    batch_size = 1

    def __init__(self, network: SegmentationNetwork, config: dict[str, Any]) -> None:
        self.network, self.config = network, config
        self.class_names = tuple(config["class_names"])
        self._size, self._target = config["size"], config["target"]

    @classmethod
    def load(cls, model: str, options: Mapping[str, Any] | None = None) -> NetworkSegmenter:
        """Load the network that `diffseg train` has written.

        Args:
            model: MODEL, a folder or URL.
            options: Storage options for fsspec.

        Raises:
            SourceError: MODEL holds no trained network.
        """
        return cls(*load_network(Storage(url=model, options=options)))

    def __call__(self, images: Sequence[np.ndarray]) -> list[Segmentation]:
        """Label images, uint8 [H, W, 3] each."""
        results = [self.launch([self.prepare(image)]).results()[0] for image in images]
        return [_checked(result) for result in results]

    def prepare(self, image: np.ndarray, prompt: Prompt | None = None) -> ModelInput:
        """Resize a uint8 [H, W, 3] image to the network's square input; the prompt is not used."""
        return fit_image(image, self._size, "resize")

    @torch.inference_mode()
    def launch(self, canvases: Sequence[ModelInput], step: Step = no_step) -> PendingBatch:
        """Label prepared images. Segments are numbered consecutively, without gaps for absent classes."""
        with step("network"):
            output = self.network(torch.stack([canvas.pixels for canvas in canvases]))
        decisions = []
        for canvas, vectors in zip(canvases, output, strict=True):
            with step("decide"):
                scores = region_scores(vectors) if self._target == "segments" else vectors.softmax(dim=0)
                decisions.append(decide_on_device(scores, canvas.region_size))
        finite = output.isfinite().flatten(1).all(dim=1)
        return PendingBatch(inputs=canvases, decisions=decisions, finite=finite)


def _checked(result: Segmentation | Exception) -> Segmentation:
    """Return a result, or raise the error of an image whose scores are not finite."""
    if isinstance(result, Exception):
        raise result
    return result


def predict(model: Storage, source: str, out: Storage, *, on_shard: Callable[[int, int], None]) -> None:
    """Label all samples of SRC with a trained network.

    Shards that are done and whose source has not changed are kept, and shards whose source is gone are removed.

    Args:
        model: MODEL, with the trained network.
        source: SRC, a folder, glob or URL of images.
        out: OUT, where the labels are written.
        on_shard: Called after each shard with the number of done shards and of all shards.

    Raises:
        RunRefused: OUT holds labels of another network or of another SRC.
        SourceError: MODEL holds no trained network, or SRC no images.
    """
    network, config = load_network(model)
    weights = hashlib.sha256(model.read_bytes(WEIGHTS)).hexdigest()
    settings = LabelSettings()
    files = find_files(source, out, out=(out, model))
    shards = shards_of(files, out, source, samples_per_shard=settings.samples_per_shard)
    listing = Listing.of(shards)
    manifest = Manifest(
        source=redacted_source(source, out),
        settings=settings.plain() | {"model": model.redacted},
        model_sha256=weights,
        resolved={"network": config},
        environment=versions(),
        fingerprint=weights[:16],
        shards=len(shards),
        listing=listing.digest(),
    )
    existing = read_manifest(out)
    if existing is not None and (existing.fingerprint, existing.source) != (manifest.fingerprint, manifest.source):
        raise RunRefused(
            f"{out.redacted}: holds labels of another network or of other images; delete it or choose another OUT"
        )
    refuse_names_that_collide(out, (shard.name for shard in shards))
    take_over(out, before=existing, now=manifest, listing=listing)
    fence = Fence(fingerprint=manifest.fingerprint, listing=manifest.listing)
    plan = make_plan(out, shards, listing, manifest.fingerprint, retry_failed=False)
    plan.delete_outdated(out)
    segmenter: Any = NetworkSegmenter(network, config)
    metadata = {"fingerprint": manifest.fingerprint, "model": model.redacted, "model_sha256": weights}
    for number, shard in enumerate(plan.todo, start=1 + len(plan.done)):
        label_shard(shard, segmenter=segmenter, settings=settings, metadata=metadata, out=out, source=out, fence=fence)
        on_shard(number, len(shards))
    if not files.skipped:
        remove_gone(out, listing, fence)
    delete_other_listings(out, listing.digest(), lambda: fence.check(out))
