"""Settings of the method, composed of one dataclass per component, and the presets `default`, `paper` and `google`.

Each difference between the paper and google/diffseg is either a field or listed in docs/paper-differences.md as not
reproduced. The string under a field is the help text of its command-line flag.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, get_args

from diffseg.component_settings import (
    AttentionSettings,
    ClipSettings,
    CovarianceSettings,
    MergeSettings,
    ModelInputSettings,
    NcutSettings,
    ProposalSettings,
    SegmentNameSettings,
    WalkSettings,
)

StageName = Literal["diffseg", "ncut", "covariance", "affinity", "par", "walk", "cross", "clip", "references"]
Preset = Literal["default", "paper", "google"]
Dtype = Literal["float32", "bfloat16", "float16"]

PROPOSING: tuple[StageName, ...] = ("diffseg", "ncut", "covariance")
"""Stages that propose segments."""

NAMING: tuple[StageName, ...] = ("cross", "clip", "references")
"""Stages that name segments."""


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings:
    """How an image becomes a label map. Where a field is None, the checkpoint's own value holds."""

    method: tuple[StageName, ...] | None = None
    """Stages in order. diffseg or ncut find segments, by merging or by normalised cuts of self-attention, and
    covariance finds them by how positions respond to noise; par aligns their borders with the image; walk spreads
    scores along the attention from confident positions; affinity, which must be first, replaces the attention by
    the affinity that `diffseg fit` learned; cross, clip or references name segments, by cross-attention, by a CLIP
    that you provide or by what `diffseg fit references` learned, or, as the first stage, find classes. None uses the
    checkpoint's own stages, else diffseg, and then references if there are references; if only names are given, clip
    with a CLIP and else cross."""
    min_area: float = 0.0
    """Merge connected pieces smaller than this share of the image into the neighbour with the longest common border. 0
    keeps all pieces."""
    model_input: ModelInputSettings = field(default_factory=ModelInputSettings)
    """How an image becomes the square that the model reads."""
    attention: AttentionSettings = field(default_factory=AttentionSettings)
    """How self-attention is recorded and aggregated."""
    proposals: ProposalSettings = field(default_factory=ProposalSettings)
    """How the stages diffseg and ncut choose proposals and assign pixels to them."""
    merging: MergeSettings = field(default_factory=MergeSettings)
    """How stage diffseg merges attention maps."""
    cuts: NcutSettings = field(default_factory=NcutSettings)
    """How stage ncut divides an image by normalised cuts."""
    covariance: CovarianceSettings = field(default_factory=CovarianceSettings)
    """How stage covariance varies an image and finds segments."""
    walk: WalkSettings = field(default_factory=WalkSettings)
    """How stage walk spreads scores along the attention."""
    segment_names: SegmentNameSettings = field(default_factory=SegmentNameSettings)
    """How the stages cross and clip name segments."""
    clip: ClipSettings = field(default_factory=ClipSettings)
    """How stage clip scores names."""

    def __post_init__(self) -> None:
        if self.method is not None:
            check_method(self.method)
        if not 0 <= self.min_area <= 1:
            raise ValueError(f"min_area={self.min_area}: expected a share of the image, 0 to 1")

    def flat(self) -> dict[str, Any]:
        """Return all fields by name as plain values, without the components: the form that run.json has."""
        plain: dict[str, Any] = {}
        for name, value in dataclasses.asdict(self).items():
            plain |= value if name in COMPONENTS else {name: value}
        return plain

    def with_values(self, **values: Any) -> SegmenterSettings:
        """Return a copy with new values of some fields, given by name whatever component they belong to.

        Raises:
            ValueError: A name is unknown, or a value is out of range.
        """
        known = {f.name for f in dataclasses.fields(self)} - set(COMPONENTS) | set(COMPONENT_OF)
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown settings {', '.join(unknown)}: expected some of {', '.join(sorted(known))}")
        changes = {name: value for name, value in values.items() if name not in COMPONENT_OF}
        for component in {COMPONENT_OF[name] for name in values if name in COMPONENT_OF}:
            of_component = {name: value for name, value in values.items() if COMPONENT_OF.get(name) == component}
            changes[component] = dataclasses.replace(getattr(self, component), **of_component)
        return dataclasses.replace(self, **changes)


COMPONENTS: Mapping[str, Any] = {
    f.name: f.default_factory for f in dataclasses.fields(SegmenterSettings) if is_dataclass(f.default_factory)
}
"""The dataclass of each component of SegmenterSettings."""

COMPONENT_OF: Mapping[str, str] = {
    f.name: component for component, kind in COMPONENTS.items() for f in dataclasses.fields(kind)
}
"""The component that each field belongs to."""


def check_method(method: tuple[StageName, ...]) -> None:
    """Raise ValueError if a stage is unknown or the order of the stages makes no sense."""
    shown = f"method={','.join(method)}"
    if unknown := [stage for stage in method if stage not in get_args(StageName)]:
        raise ValueError(f"{shown}: {unknown[0]!r} is not one of the stages {', '.join(get_args(StageName))}")
    if method[:1] == ("affinity",):
        method = method[1:]
    if not method or method[0] not in PROPOSING + NAMING:
        raise ValueError(
            f"{shown}: the first stage must be one of {', '.join(PROPOSING + NAMING)}, which find segments"
        )
    if "affinity" in method:
        raise ValueError(f"{shown}: affinity changes what all other stages read, so it must be the first stage")
    if any(stage in PROPOSING for stage in method[1:]) or len(set(method)) < len(method):
        raise ValueError(f"{shown}: only the first stage finds segments, and no stage can run twice")
    if sum(stage in NAMING for stage in method) > 1:
        raise ValueError(f"{shown}: only one stage can name segments, {', '.join(NAMING[:-1])} or {NAMING[-1]}")


_PAPER: Mapping[str, Any] = {
    "fit": "crop",
    "timestep": 300,
    "tau": (1.1, 1.1, 1.1),
    "assign": "peak",
    "method": ("diffseg",),
}
_GOOGLE: Mapping[str, Any] = {
    **_PAPER,
    "antialias": False,
    "weights": "google",
    "anchor_layout": "google",
    "consume": "google",
    "vote": "mean",
}
PRESETS: Mapping[str, SegmenterSettings] = {
    "default": SegmenterSettings(),
    "paper": SegmenterSettings().with_values(**_PAPER),
    "google": SegmenterSettings().with_values(**_GOOGLE),
}


def thresholds(tau: float | tuple[float, ...] | list[float], rounds: int = 3) -> tuple[float, ...]:
    """Return one threshold per round; a single number holds for all three rounds of the paper."""
    if isinstance(tau, (int, float)):
        return (float(tau),) * rounds
    return tuple(float(t) for t in tau)


def settings_of(preset: Preset = "default", **overrides: Any) -> SegmenterSettings:
    """Return the settings of a preset, changed where overrides are given.

    Args:
        preset: Name of the preset.
        overrides: Values of single fields, by name. `tau` may be one number for all rounds, and `method` a string of
            stages separated by commas.

    Raises:
        ValueError: The preset or a field is unknown, or a value is out of range.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r}: expected one of {', '.join(PRESETS)}")
    if isinstance(overrides.get("method"), str):
        overrides["method"] = tuple(overrides["method"].split(","))
    if overrides.get("tau") is not None:
        overrides["tau"] = thresholds(overrides["tau"])
    return PRESETS[preset].with_values(**overrides)


def needs_text_encoders(settings: SegmenterSettings, *, naming: bool) -> bool:
    """Return whether the model's text encoders must be loaded.

    Args:
        settings: Settings of the method.
        naming: Whether segments are named by cross-attention unless the settings name other stages.
    """
    return naming if settings.method is None else "cross" in settings.method
