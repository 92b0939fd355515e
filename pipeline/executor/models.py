"""What a worker loads: Stable Diffusion with the method, or a trained network in its place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.executor.protocol import Job
from pipeline.settings import LabelSettings
from pipeline.weights import Weights, find_affinity, find_weights

if TYPE_CHECKING:
    from diffseg import Segmenter
    from diffseg.clip.clip import Clip
    from diffseg.model.checkpoint import Checkpoint
    from pipeline.label import ImageSegmenter
    from pipeline.readers.names import NameReader


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model on its device, and what a run records of it.

    Attributes:
        segmenter: Labels batches of images.
        sha256: Digest of the model's files.
        resolved: Values that the model filled in, for run.json.
        about: How the labels are made, for the metadata of label shards.
        names: Reads the names of each sample; None if images come without names.
        environment: What may change the last bits of a float, for run.json.
    """

    segmenter: ImageSegmenter
    sha256: str
    resolved: dict[str, Any]
    about: dict[str, str]
    names: NameReader | None = None
    environment: dict[str, Any] = field(default_factory=dict)


def load_model(job: Job) -> LoadedModel:
    """Load what a job labels with.

    Raises:
        CheckpointError: The checkpoint cannot be used (a ValueError).
        ValueError: The settings do not fit the checkpoint.
        OSError: The store of the checkpoint fails.
    """
    return _load_stable_diffusion(job) if job.settings.network is None else _load_network(job, job.settings.network)


def _load_stable_diffusion(job: Job) -> LoadedModel:
    settings = job.settings
    weights = find_weights(settings, job.source)  # before the imports, which take seconds

    from diffseg import Segmenter
    from diffseg.devices import keep_freed_memory
    from diffseg.method.segment_features import feature_layers
    from diffseg.model.backbone import Backbone
    from diffseg.model.files import with_digest
    from pipeline.readers.names import NameReader
    from pipeline.references.state import load_references

    checkpoint, clip = _load_parts(weights, settings, job.worker.device)
    affinity = None if settings.affinity is None else find_affinity(settings.affinity, job.source)
    references = None if settings.references is None else load_references(job.source.at(settings.references))
    keep_freed_memory()
    segmenter = Segmenter(
        Backbone(checkpoint, compile=job.worker.compile),
        settings.method,
        naming=bool(settings.naming),
        clip=clip,
        affinity=affinity,
        references=references,
        levels=settings.levels,
        features=settings.features,
        quality=settings.quality,
    )
    resolved: dict[str, Any] = {
        "tau": list(segmenter.tau),
        "timestep": segmenter.timestep,
        "resolution": segmenter.resolution,
        "method": list(segmenter.method),
    } | ({"affinity": affinity.sha256} if affinity else {})
    if references is not None:
        resolved["references"] = references.sha256
    if conditioning := segmenter.backbone.conditioning(segmenter.resolution):
        resolved["conditioning"] = conditioning
    if segmenter.features:
        resolved["features"] = feature_layers(checkpoint.unet, segmenter.resolution)
        if clip is not None:  # model_sha256 is then that of both models, but features depend on Stable Diffusion alone
            resolved["checkpoint_sha256"] = checkpoint.sha256
    if "ncut" in segmenter.method:
        resolved["ncut"] = "k-way"  # earlier versions cut in two, again and again
    environment = {"attention": segmenter.backbone.recorder.backend.name}
    return LoadedModel(
        segmenter=segmenter,
        sha256=checkpoint.sha256 if clip is None else with_digest(checkpoint.sha256, clip.sha256),
        resolved=resolved,
        about={
            "method": ",".join(segmenter.method),
            "context": CONTEXTS[
                settings.method.segment_names.prompt if "cross_attention" in segmenter.needs else "empty"
            ],
            "noise": _noise_of(segmenter),
        },
        names=NameReader(settings.naming) if settings.naming else None,
        environment=environment | ({"resizing": "on the GPU"} if segmenter.resizes_on_device else {}),
    )


CONTEXTS = {"names": "names of the image", "empty": "empty prompt", "caption": "caption of the image"}
"""What conditions the passes, for the metadata of label files, by the setting `prompt`."""


def _noise_of(segmenter: Segmenter) -> str:
    """Return what noise the passes have, for the metadata of label files."""
    if "variants" not in segmenter.needs:
        return "none"
    settings = segmenter.settings.covariance
    return f"none; {settings.variants} variants at timestep {settings.variant_timestep}"


def _load_parts(weights: Weights, settings: LabelSettings, device: str) -> tuple[Checkpoint, Clip | None]:
    """Load the checkpoint, and the CLIP if the settings name one, onto a device."""
    import torch

    from diffseg.clip.clip import load_clip
    from diffseg.model.checkpoint import load_checkpoint
    from diffseg.settings import needs_text_encoders

    with weights.named():
        checkpoint = load_checkpoint(
            weights.model,
            vae=weights.vae,
            device=device,
            dtype=getattr(torch, settings.known_dtype),
            text=needs_text_encoders(
                settings.method, naming=bool(settings.naming) and weights.clip is None and settings.references is None
            ),
        )
        return checkpoint, None if weights.clip is None else load_clip(
            weights.clip, device=device, words=settings.naming.name_words
        )


def _load_network(job: Job, location: str) -> LoadedModel:
    from pipeline.networks.files import load_network, network_sha256
    from pipeline.networks.segmenter import NetworkSegmenter

    if job.worker.compile:
        raise ValueError("compile: a trained network is not compiled; leave out one of compile and network")
    model = job.source.at(location)
    network, config = load_network(model, job.settings.naming.names)
    return LoadedModel(
        segmenter=NetworkSegmenter(network, config, device=job.worker.device),
        sha256=network_sha256(model),
        resolved={"network": config},
        about={"method": "network"},
    )
