"""Checks that the model, the settings, the learned affinity and the references of a run can be combined."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from diffseg.affinity.affinity import check_state
from diffseg.affinity.state import AffinityState, PassConditions, layers_by_grid
from diffseg.method.reference_names import SegmentNaming
from diffseg.method.segment_features import feature_layers
from diffseg.method.stages import Stage
from diffseg.model.backbone import Backbone
from diffseg.reference_state import References, ReferencesError, pass_conditions
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
    """Check that a run with a compiled model records no signal that compiled graphs cannot give.

    Args:
        needs: Signals that are recorded.
        settings: Settings of the method.
        quality: Whether variants are recorded for `within_rho` and `between_rho`.

    Raises:
        ValueError: The run records such a signal.
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
            ("features", "leave out features and references")
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
    """Check that a learned affinity fits the model, the passes and the method.

    Args:
        affinity: The affinity; None if the run has none, which then must not have the stage affinity.
        passes: The passes of the run.
        settings: Settings of the method.
        method: Names of the stages.

    Raises:
        AffinityError: It was learned from other passes, or the method does not fit it. This is a ValueError.
        ValueError: A setting excludes it.
    """
    if affinity is None:
        check_state(None, None, method)
        return
    checkpoint = passes.backbone.checkpoint
    now = PassConditions(
        model_sha256=checkpoint.sha256,
        timestep=passes.timestep,
        resolution=passes.resolution,
        layers=layers_by_grid(checkpoint.unet, passes.resolution),
        conditioning=passes.backbone.conditioning(passes.resolution),
    )
    check_state(affinity, now, method)
    if passes.backbone.compiled:
        raise ValueError(
            "compile and affinity exclude each other: affinity is read by hooks inside the layers, which compiled "
            "graphs do not call; leave out one of the two"
        )
    if settings.attention.crops:
        raise ValueError(
            "crops and affinity exclude each other: affinity is learned from whole images, and crops show their "
            "parts at twice the scale on a grid twice as fine; leave out one of the two"
        )


def check_references(
    references: References | None, passes: Passes, settings: SegmenterSettings, stages: Sequence[Stage]
) -> SegmentNaming | None:
    """Check that references fit the model, the passes and the method.

    Args:
        references: The references; None if the run has none, which then must not have the stage references.
        passes: The passes of the run.
        settings: Settings of the method.
        stages: The stages.

    Returns:
        The object that names the finished segments by the references. None without references, or if the stage
        references is the first and finds classes.

    Raises:
        ReferencesError: They were learned from other passes, or the method or a setting does not fit them. This is a
            ValueError.
    """
    method = [stage.name for stage in stages]
    if ("references" in method) != (references is not None):
        raise ReferencesError(
            f"method {','.join(method)}: the stage references and the STATE of `diffseg fit references` need each "
            "other (references=…, --references); give both or neither"
        )
    if references is None:
        return None
    checkpoint = passes.backbone.checkpoint
    now = pass_conditions(
        model_sha256=checkpoint.sha256,
        timestep=passes.timestep,
        resolution=passes.resolution,
        layers=feature_layers(checkpoint.unet, passes.resolution),
        conditioning=passes.backbone.conditioning(passes.resolution),
    )
    references.check_fits(now)
    if any("references" in stage.needs for stage in stages):
        return None
    if settings.segment_names.merge_names:
        raise ReferencesError(
            "merge_names and references exclude each other: segments are named by their features, and merged ones "
            "would have others; leave out merge_names, or find classes with references as the first stage"
        )
    return SegmentNaming(references=references, settings=settings.segment_names)
