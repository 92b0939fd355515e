"""The method as a list of stages: each reads the signals of a batch of images, and makes or changes scores.

A stage declares which signals it needs, and only the signals that some stage of the run needs are computed. The first
stage that returns scores proposes segments or classes, and the stages after it refine or name them. Which proposal wins
where is decided at the end, see `diffseg.method.decide`. Stages do not modify their inputs, except for `affinity`,
which says so.

Axes: B images of the batch, K proposals, T names, h and w positions of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, get_args

import torch

from diffseg.affinity.affinity import as_attention
from diffseg.attention.aggregate import average_cross_attention
from diffseg.component_settings import ClipSettings, SegmentNameSettings, WalkSettings
from diffseg.method.clip_naming import denoise_names, smooth_scores
from diffseg.method.naming import BACKGROUND_INDEX, NO_NAME, add_background, apply_thresholds, class_maps, vote_names
from diffseg.method.par import refine
from diffseg.method.proposals import propose, propose_with_leaves
from diffseg.method.random_walk import random_walk, resize_maps
from diffseg.method.signals import Need, Scores, Signals
from diffseg.model.backbone import Step, no_step
from diffseg.settings import NAMING, PROPOSING, SegmenterSettings, StageName
from diffseg.variants.cluster import propose_by_covariance

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


@dataclass(frozen=True, kw_only=True)
class Propose:
    """Stages diffseg and ncut: segments from self-attention, by merging or by normalised cuts, or cuts of features."""

    name: StageName
    settings: SegmenterSettings
    tau: tuple[float, ...]
    levels: bool = False
    needs: frozenset[Need] = frozenset({"self_attention"})

    def run(self, signals: Signals, scores: Scores | None) -> Scores:
        """Propose segments."""
        attention, grid, cuts = signals.self_attention, signals.grid, self.name == "ncut"
        if self.levels:
            maps, leaves = propose_with_leaves(attention, signals.finite, grid, self.settings, self.tau)
            return Scores(maps=maps, leaves=leaves)
        output = signals.layer_output if "layer_output" in self.needs else None
        maps = propose(attention, signals.finite, grid, self.settings, self.tau, cuts=cuts, layer_output=output)
        return Scores(maps=maps)


@dataclass(frozen=True, kw_only=True)
class Covariance:
    """Stage covariance: segments of positions that respond alike to noise (after Network-free)."""

    settings: SegmenterSettings
    tau: tuple[float, ...]
    name: StageName = "covariance"
    needs: frozenset[Need] = frozenset({"self_attention", "variants"})

    def run(self, signals: Signals, scores: Scores | None) -> Scores:
        """Propose segments."""
        if signals.variants is None:
            raise ValueError("stage covariance compares variants of an image, but none were recorded")
        settings, counts = (
            self.settings.covariance,
            [self.settings.covariance.covariance_segments] * len(signals.finite),
        )
        if settings.covariance_segments == "diffseg":
            merged = propose(signals.self_attention, signals.finite, signals.grid, self.settings, self.tau)
            counts = [int(labels.unique().numel()) for labels in merged.argmax(dim=1)]
        return Scores(maps=propose_by_covariance(signals.variants, counts, settings.covariance_above))


@dataclass(frozen=True, kw_only=True)
class PixelAdaptive:
    """Stage par: borders are aligned with the image (PAR of AFA)."""

    name: StageName = "par"
    needs: frozenset[Need] = frozenset()

    def run(self, signals: Signals, scores: Scores | None) -> Scores:
        """Refine the scores of the winning proposals."""
        scores = _require_scores(scores, self.name).winning()
        return replace(scores, maps=refine(scores.maps, signals.pixels[: len(scores.maps)]))


@dataclass(frozen=True, kw_only=True)
class LearnedAttention:
    """Stage affinity: learned affinity replaces the self-attention for the stages after it (AFA)."""

    name: StageName = "affinity"
    needs: frozenset[Need] = frozenset({"self_attention", "affinity"})

    def run(self, signals: Signals, scores: Scores | None) -> Scores | None:
        """Replace `signals.self_attention`, and return the scores unchanged."""
        affinity = signals.affinity
        if affinity is None or affinity.dense is None:
            raise ValueError(
                "stage affinity replaces attention by learned affinity, but no affinity of heads was given"
            )
        signals.self_attention = as_attention(affinity.dense, affinity.grid, signals.grid)
        return scores


@dataclass(frozen=True, kw_only=True)
class RandomWalk:
    """Stage walk: scores spread from confident positions along the self-attention (AffinityNet's random walk)."""

    settings: WalkSettings
    name: StageName = "walk"
    needs: frozenset[Need] = frozenset({"self_attention"})

    def run(self, signals: Signals, scores: Scores | None) -> Scores:
        """Spread the scores of the winning proposals, along learned affinity of neighbours if that is given."""
        scores = _require_scores(scores, self.name).winning()
        walked = random_walk(
            resize_maps(scores.maps, signals.grid),
            signals.self_attention[: len(scores.maps)],
            power=self.settings.walk_power,
            steps=self.settings.walk_steps,
            radius=self.settings.walk_radius,
            seeds=self.settings.walk_seeds,
            affinity=signals.affinity.local if signals.affinity else None,
        )
        return replace(scores, maps=walked)


@dataclass(frozen=True, kw_only=True)
class CrossNames:
    """Stage cross: names of segments from cross-attention, or, as the first stage, classes from it alone."""

    settings: SegmentNameSettings
    name: StageName = "cross"
    needs: frozenset[Need] = frozenset({"cross_attention"})

    def run(self, signals: Signals, scores: Scores | None) -> Scores:
        """Name the proposals, or propose classes."""
        if signals.cross_attention is None or signals.name_counts is None:
            raise ValueError("stage cross names segments, but no names were given")
        include_coarsest = self.settings.vote != "share"
        maps, _ = average_cross_attention(signals.cross_attention, include_coarsest=include_coarsest)
        return name_proposals(maps, signals.name_counts, scores, self.settings, signals.background_words)


@dataclass(frozen=True, kw_only=True)
class ClipNames:
    """Stage clip: names of segments from CLIP's scores (MaskCLIP), or, as the first stage, classes from them alone."""

    settings: SegmentNameSettings
    clip: ClipSettings
    name: StageName = "clip"
    needs: frozenset[Need] = frozenset({"self_attention", "clip"})

    def run(self, signals: Signals, scores: Scores | None) -> Scores:
        """Name the proposals, or propose classes."""
        if signals.clip_probabilities is None or signals.name_counts is None:
            raise ValueError("stage clip names segments, but no names or no scores of a CLIP were given")
        maps = denoise_names(signals.clip_probabilities, self.clip.clip_denoise)
        if self.clip.clip_smooth:
            maps = smooth_scores(maps, signals.self_attention, signals.finite, signals.grid)
        # The other votes compensate for attention maps of different strength, but these maps are shares.
        settings = replace(self.settings, vote="share")
        return name_proposals(maps, signals.name_counts, scores, settings, signals.background_words)


@dataclass(frozen=True, kw_only=True)
class ReferenceNames:
    """Stage references: names of segments by references that were learned from many images, or classes by them alone.

    Features of segments are means over the finished label map. Segments are therefore named when that exists, see
    `diffseg.method.reference_names`, as `diffseg name` does it. As the first stage, each name is a class (ReCo; Shin et
    al., NeurIPS 2022, section 3).
    """

    name: StageName = "references"
    needs: frozenset[Need] = frozenset({"features"})

    def run(self, signals: Signals, scores: Scores | None) -> Scores:
        """Propose classes, or return the scores unchanged."""
        if scores is not None:
            return scores
        if signals.reference_maps is None:
            raise ValueError("stage references finds classes, but no references were given")
        maps = signals.reference_maps
        names = torch.arange(maps.shape[1], device=maps.device)
        if signals.references_background:
            names[-1] = BACKGROUND_INDEX
        return Scores(maps=maps, names=names.expand(len(maps), -1))


def name_proposals(
    maps: torch.Tensor,
    counts: torch.Tensor,
    scores: Scores | None,
    settings: SegmentNameSettings,
    background_words: int = 0,
) -> Scores:
    """Name proposals by the maps of names, or, if there are no proposals yet, make each name a class.

    Args:
        maps: float32 [B, T + W, h, w], see `diffseg.method.naming.vote_names`.
        counts: int64 [B], the number of names of each image.
        scores: Scores of the proposals; None before the first stage.
        settings: How a segment gets its name.
        background_words: W, how many of the last maps belong to background words. Together they are one class, whose
            map is the highest of theirs.
    """
    indices = torch.arange(maps.shape[1] - background_words, device=maps.device)
    if background_words:
        names, words = maps[:, : len(indices)], maps[:, len(indices) :]
        maps = torch.cat([names, words.amax(dim=1, keepdim=True)], dim=1)
        indices = torch.nn.functional.pad(indices, (0, 1), value=BACKGROUND_INDEX)
    if scores is None:
        classes = class_maps(maps, counts, last_is_background=background_words > 0)
        return Scores(maps=classes, names=indices.expand(len(maps), -1))
    chosen, name_scores = vote_names(scores.maps, maps, counts, settings.vote)
    chosen = torch.where(chosen >= 0, indices[chosen.clamp_min(0)], chosen)
    names = apply_thresholds(chosen, name_scores, settings.background_below, settings.ignore_below)
    return replace(scores, names=names, name_scores=name_scores)


def _require_scores(scores: Scores | None, name: str) -> Scores:
    if scores is None:
        raise ValueError(f"stage {name} changes scores: it cannot be the first")
    return scores


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
    first = next(place for place, stage in enumerate([*resolved, None]) if getattr(stage, "name", "") != "affinity")
    if first < len(resolved) and isinstance(classes := resolved[first], ReferenceNames):
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


def classes_to_segments(scores: Scores, settings: SegmentNameSettings) -> Scores:
    """Turn scores of classes into scores of named segments; scores that already are those are returned unchanged.

    Background and ignored positions become two more proposals, see `add_background`. The name score of a class is its
    mean, where it wins, of the highest class score.
    """
    if not scores.of_classes:
        return scores
    assert scores.names is not None
    maps = add_background(scores.maps, settings.background_below, settings.ignore_below)
    others = scores.names.new_tensor([BACKGROUND_INDEX, NO_NAME]).expand(len(maps), -1)
    wins = torch.nn.functional.one_hot(maps.argmax(dim=1), maps.shape[1]).permute(0, 3, 1, 2)
    strongest = scores.maps.amax(dim=1, keepdim=True) if scores.maps.shape[1] else torch.zeros_like(maps[:, :1])
    name_scores = (wins * strongest).sum(dim=(2, 3)) / wins.sum(dim=(2, 3)).clamp_min(1)
    return Scores(maps=maps, names=torch.cat([scores.names, others], dim=1), name_scores=name_scores)
