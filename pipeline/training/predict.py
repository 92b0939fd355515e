"""A trained network's label maps, written as a label run has them, so that all commands read them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from diffseg.images.canvas import ModelInput, fit_image
from diffseg.method.decide import decide_on_device
from diffseg.model.backbone import Step, no_step
from diffseg.model.text import Prompt
from diffseg.pending import PendingBatch
from pipeline.errors import RunRefused
from pipeline.label import label_shard
from pipeline.output.commit import read_run_commits
from pipeline.output.manifest import Manifest, read_manifest, versions, write_manifest
from pipeline.readers.find import find_shards
from pipeline.settings import LabelSettings
from pipeline.storage import Storage
from pipeline.training.network import SegmentationNetwork
from pipeline.training.regions import region_scores
from pipeline.training.state import WEIGHTS, load_network


class NetworkSegmenter:
    """A trained network in the place of `diffseg.Segmenter`, as far as `label_shard` knows it."""

    batch_size = 1

    def __init__(self, network: SegmentationNetwork, config: dict[str, Any]) -> None:
        self._network, self._size, self._target = network, config["size"], config["target"]

    def prepare(self, image: np.ndarray, prompt: Prompt | None = None) -> ModelInput:
        """The network's square of a uint8 [H, W, 3] image. prompt: read by no network of ours."""
        return fit_image(image, self._size, "resize")

    @torch.inference_mode()
    def launch(self, canvases: Sequence[ModelInput], step: Step = no_step) -> PendingBatch:
        """Label prepared images; classes without a pixel leave no gap in the numbers of segments."""
        with step("network"):
            found = self._network(torch.stack([canvas.pixels for canvas in canvases]))
        decisions = []
        for canvas, vectors in zip(canvases, found, strict=True):
            with step("decide"):
                scores = region_scores(vectors) if self._target == "segments" else vectors.softmax(dim=0)
                decisions.append(decide_on_device(scores, canvas.region_size))
        finite = found.isfinite().flatten(1).all(dim=1)
        return PendingBatch(canvases=canvases, decisions=decisions, finite=finite)


def predict(model: Storage, source: str, out: Storage, *, on_shard: Callable[[int, int], None]) -> None:
    """Label every sample of SRC with the network of MODEL into OUT; shards that are done already stay as they are.

    on_shard: told how many are done, and of how many. Raises RunRefused where OUT holds the labels of another network
    or SRC, SourceError where there is no network.
    """
    network, config = load_network(model)
    weights = hashlib.sha256(model.read_bytes(WEIGHTS)).hexdigest()
    settings = LabelSettings()
    shards = find_shards(source, out, samples_per_shard=settings.samples_per_shard)
    manifest = Manifest(
        source=out.at(source).redacted,
        settings=settings.plain() | {"model": model.redacted},
        model_sha256=weights,
        resolved={"network": config},
        environment=versions(),
        fingerprint=weights[:16],
        shards=len(shards),
    )
    before = read_manifest(out)
    if before is not None and (before.fingerprint, before.source) != (manifest.fingerprint, manifest.source):
        raise RunRefused(
            f"{out.redacted}: holds labels of another network or of other images; delete it or name another"
        )
    write_manifest(out, manifest)
    done = read_run_commits(out, manifest).done
    segmenter: Any = NetworkSegmenter(network, config)
    for number, shard in enumerate(shards, start=1):
        if shard.name not in done:
            metadata = {"fingerprint": manifest.fingerprint, "model": model.redacted, "model_sha256": weights}
            label_shard(shard, segmenter=segmenter, settings=settings, metadata=metadata, out=out, source=out)
        on_shard(number, len(shards))
