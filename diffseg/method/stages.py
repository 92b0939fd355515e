"""The method as a list of stages: each reads the signals of a batch of images, and makes or changes scores.

A stage declares which signals it needs, and only the signals that some stage of the run needs are computed. The first
stage that returns scores proposes segments or classes, and the stages after it refine or name them. Which proposal wins
where is decided at the end, see `diffseg.method.decide`. Stages do not modify their inputs, except for `affinity`,
which says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, get_args

from diffseg.method.name_stages import ClipNames, CrossNames, ReferenceNames
from diffseg.method.segment_stages import Covariance, LearnedAttention, PixelAdaptive, Propose, RandomWalk
from diffseg.method.signals import Need, Scores, Signals
from diffseg.model.backbone import Step, no_step
from diffseg.settings import NAMING, PROPOSING, SegmenterSettings, StageName

TIMER_NAMES = {
    "diffseg": "merge",
    "ncut": "merge",
    "covariance": "cluster",
    "par": "refine",
    "cross": "name",
    "clip": "name",
    "references": "name",
}
"""Names of the stages in timings, where they differ from the names in the settings."""


class Stage(Protocol):
    """One step of the method."""

    @property
    def name(self) -> str:
        """Name of the stage: in the setting `method`, in timings and in messages."""
        ...

    @property
    def needs(self) -> frozenset[Need]:
        """Signals that the stage cannot run without."""
        ...

    def run(self, signals: Signals, scores: Scores | None) -> Scores | None:
        """Return new scores from the signals and the scores of the stage before; the first stage gets None."""
        ...


def stages_of(stages: Sequence[StageName | Stage], settings: SegmenterSettings, tau: tuple[float, ...]) -> list[Stage]:
    """Return the stages of a method in order.

    Args:
        stages: Names of stages, or objects with the interface of `Stage`.
        settings: Settings of the stages that are given by name.
        tau: Merging threshold of each round in nats, which the checkpoint may have supplied.

    Raises:
        ValueError: A name is unknown, an object is not a stage, or the first stage does not find segments.
    """
    if not stages:
        raise ValueError("no stages were given")
    if isinstance(stages[0], str) and stages[0] not in (*PROPOSING, *NAMING, "affinity"):
        raise ValueError(f"stage {stages[0]} finds no segments, so it cannot be the first stage")
    resolved = [stage_of(stage, settings, tau) if isinstance(stage, str) else stage for stage in stages]
    # The stage affinity returns no scores, so the stage after it is the first that can find classes.
    first = 1 if getattr(resolved[0], "name", "") == "affinity" and len(resolved) > 1 else 0
    if isinstance(classes := resolved[first], ReferenceNames):
        resolved[first] = replace(classes, needs=classes.needs | {"references"})
    for stage in resolved:
        if not all(hasattr(stage, attribute) for attribute in ("name", "needs", "run")):
            raise ValueError(
                f"{stage!r} is no stage: expected the name of a stage, or an object with name, needs and run"
            )
        if unknown := sorted(frozenset(stage.needs) - frozenset(get_args(Need))):
            raise ValueError(
                f"stage {stage.name} needs {unknown[0]!r}; expected some of the signals {', '.join(get_args(Need))}"
            )
    return resolved


def stage_of(name: StageName, settings: SegmenterSettings, tau: tuple[float, ...]) -> Stage:
    """Return the stage of a name, see `stages_of`."""
    match name:
        case "diffseg":
            return Propose(name=name, settings=settings, tau=tau)
        case "ncut":
            needs: list[Need] = ["self_attention"]
            needs += ["layer_output"] if settings.cuts.ncut_on == "features" else []
            return Propose(name=name, settings=settings, tau=tau, needs=frozenset(needs))
        case "covariance":
            return Covariance(settings=settings, tau=tau)
        case "par":
            return PixelAdaptive()
        case "affinity":
            return LearnedAttention()
        case "walk":
            return RandomWalk(settings=settings.walk)
        case "cross":
            return CrossNames(settings=settings.segment_names)
        case "clip":
            return ClipNames(settings=settings.segment_names, clip=settings.clip)
        case "references":
            return ReferenceNames()
    raise ValueError(f"stage {name!r} is unknown")


def with_levels(stages: Sequence[Stage], settings: SegmenterSettings) -> list[Stage]:
    """Return the stages, of which the one that merges also keeps what levels are made of.

    Raises:
        ValueError: No stage merges, or the threshold differs between images.
    """
    if not any(isinstance(stage, Propose) and stage.name == "diffseg" for stage in stages):
        names = ",".join(stage.name for stage in stages)
        raise ValueError(f"method {names} has no levels, which come from merging; use the stage diffseg")
    if settings.proposals.stable:
        raise ValueError("stable and levels exclude each other: `diffseg recut --stable` chooses among the levels")
    return [replace(stage, levels=True) if isinstance(stage, Propose) else stage for stage in stages]


def run_stages(
    stages: Sequence[Stage], signals: Signals, step: Step = no_step, *, until_proposed: bool = False
) -> Scores:
    """Run stages in order, and return the scores of the last one.

    Args:
        stages: The stages.
        signals: Signals of a batch.
        step: Context manager factory that receives the name of each stage, to time it.
        until_proposed: Whether to end with the first stage that returns scores.

    Raises:
        ValueError: No stage returned scores.
    """
    scores: Scores | None = None
    for stage in stages:
        with step(TIMER_NAMES.get(stage.name, stage.name)):
            scores = stage.run(signals, scores)
        if until_proposed and scores is not None:
            break
    if scores is None:
        raise ValueError(f"method {','.join(stage.name for stage in stages)}: no stage returned scores")
    return scores
