"""Checks that what a run combines with a model fits the model, and what it may combine at all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from diffseg.affinity.affinity import check_state
from diffseg.affinity.state import AffinityState, PassConditions, layers_by_grid
from diffseg.method.reference_names import SegmentNaming, naming_by
from diffseg.method.segment_features import feature_layers
from diffseg.method.stages import Stage
from diffseg.model.backbone import Backbone
from diffseg.reference_state import References, pass_conditions
from diffseg.settings import SegmenterSettings


@dataclass(frozen=True, kw_only=True)
class Passes:
    """The passes of a run, to which learned affinity and references are bound.

    Attributes:
        backbone: VAE encoder and UNet.
        timestep: Diffusion timestep.
        resolution: Side of the model's square in pixels.
    """

    backbone: Backbone
    timestep: int
    resolution: int


def check_compiled(needs: Collection[str], settings: SegmenterSettings, *, quality: bool) -> None:
    """Check that nothing reads a compiled model in a way that compiled graphs do not support.

    Args:
        needs: Signals that are recorded.
        settings: Settings of the method.
        quality: Whether variants are recorded for `within_rho` and `between_rho`.

    Raises:
        ValueError: Something does.
    """
    if "clip" in needs and settings.clip.clip_guide == "features":
        raise ValueError(
            "compile and clip_guide=features exclude each other: features are read by hooks inside the layers, "
            "which compiled graphs do not call; use clip_guide=attention, or do not compile"
        )
    if "cross_attention" in needs and settings.segment_names.vote == "goca":
        raise ValueError(
            "compile and vote=goca exclude each other: the weights of layers are computed outside of compiled "
            "graphs; use another vote, or do not compile"
        )
    if not {"layer_output", "features"}.isdisjoint(needs):
        reader, instead = (
            ("features", "leave out features, and references")
            if "features" in needs
            else ("ncut_on=features", "use ncut_on=attention")
        )
        raise ValueError(
            f"compile and {reader} exclude each other: features are read by a hook inside a layer, which compiled "
            f"graphs do not call; {instead}, or do not compile"
        )
    if "variants" in needs:
        reader, instead = ("quality", "leave out quality") if quality else ("covariance", "use another stage")
        raise ValueError(
            f"compile and {reader} exclude each other: variants are compared by a hook at a layer, which compiled "
            f"graphs do not call; {instead}, or do not compile"
        )


def check_affinity(
    affinity: AffinityState | None, passes: Passes, settings: SegmenterSettings, method: Sequence[str]
) -> None:
    """Check that a learned affinity, if there is one, fits the model, the passes and the method.

    Args:
        affinity: The affinity.
        passes: The passes of the run.
        settings: Settings of the method.
        method: Names of the stages.

    Raises:
        ValueError: It does not fit; AffinityError is one.
    """
    checkpoint, now = passes.backbone.checkpoint, None
    if affinity is not None:
        now = PassConditions(
            model_sha256=checkpoint.sha256,
            timestep=passes.timestep,
            resolution=passes.resolution,
            layers=layers_by_grid(checkpoint.unet, passes.resolution),
            conditioning=passes.backbone.conditioning(passes.resolution),
        )
    check_state(affinity, now, method)
    if affinity is not None and passes.backbone.compiled:
        raise ValueError(
            "compile and affinity exclude each other: affinity is read by hooks inside the layers, which compiled "
            "graphs do not call; leave out one of the two"
        )
    if affinity is not None and settings.attention.crops:
        raise ValueError(
            "crops and affinity exclude each other: affinity is learned from whole images, and crops show their "
            "parts at twice the scale on a grid twice as fine; leave out one of the two"
        )


def check_references(
    references: References | None, passes: Passes, settings: SegmenterSettings, stages: Sequence[Stage]
) -> SegmentNaming | None:
    """Check that references, if there are some, fit, and return what names segments by them.

    Args:
        references: The references.
        passes: The passes of the run.
        settings: Settings of the method.
        stages: The stages.

    Returns:
        None without references, and if a stage finds classes by them.

    Raises:
        ValueError: They do not fit; ReferencesError is one.
    """
    checkpoint, now = passes.backbone.checkpoint, None
    if references is not None:
        now = pass_conditions(
            model_sha256=checkpoint.sha256,
            timestep=passes.timestep,
            resolution=passes.resolution,
            layers=feature_layers(checkpoint.unet, passes.resolution),
            conditioning=passes.backbone.conditioning(passes.resolution),
        )
    return naming_by(references, now, stages, settings.segment_names)
