"""The method as a list of stages: each reads signals of a batch of images, and makes or changes scores.

A stage says which signals it needs, and only those that a stage of the run needs are made. The first one that gives
scores proposes segments, or classes; those after it refine or name them; what wins where is decided at the end, see
`diffseg.method.decide`. Stages change nothing that they are given, but for the one that says so (`affinity`).

Axes: B images of the batch, P = h·w positions of the working grid, K proposals, S pixels of the model's square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch

from diffseg.affinity.affinity import Affinity, as_attention
from diffseg.attention.aggregate import average_cross_attention
from diffseg.attention.maps import CrossAttention, Grid
from diffseg.component_settings import ClipSettings, SegmentNameSettings, WalkSettings
from diffseg.method.clip_naming import denoise_names, smooth_scores
from diffseg.method.naming import BACKGROUND_INDEX, NO_NAME, add_background, apply_thresholds, class_maps, vote_names
from diffseg.method.par import refine
from diffseg.method.proposals import propose
from diffseg.method.random_walk import random_walk, resize_maps
from diffseg.settings import SegmenterSettings, StageName

Need = Literal["attention", "cross", "clip", "learned"]


@dataclass(kw_only=True, eq=False)
class Signals:
    """What the stages of a run may read of a batch; what none of them needs is None.

    pixels: float32 [B, 3, S, S] in [−1, 1]. grid: (h, w) of the working grid. attention: float32 [B, P, P], aggregated
    self-attention, rows sum to 1. finite: bool [B], images whose attention is. cross: of names, 0 where an image has
    fewer. clip: float32 [B, T, h', w'], what CLIP says each position shows, 0 to 1, at most 1 over an image's names.
    name_counts: int64 [B], how many names each image has. learned: affinity, where a file of it is given.
    """

    pixels: torch.Tensor
    grid: Grid
    attention: torch.Tensor
    finite: torch.Tensor
    cross: CrossAttention | None = None
    clip: torch.Tensor | None = None
    name_counts: torch.Tensor | None = None
    learned: Affinity | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """How much each place belongs to each proposal.

    maps: float32 [B, K, h, w], ≥ 0 and finite, on any grid. names: int64 [B, K], the index of each proposal's name, see
    `diffseg.method.naming`; None where nothing was named. name_scores: float32 [B, K], 0 to 1; None where the proposals are
    the names themselves.
    """

    maps: torch.Tensor
    names: torch.Tensor | None = None
    name_scores: torch.Tensor | None = None

    @property
    def of_classes(self) -> bool:
        """Whether each map is that of a name."""
        return self.names is not None and self.name_scores is None

    def winning(self) -> Scores:
        """Without the proposals that are the highest nowhere; in a batch, and on a device, they are 0 instead."""
        best = self.maps.argmax(dim=1).flatten(1)
        if len(self.maps) > 1 or self.maps.device.type != "cpu":
            wins = torch.zeros(self.maps.shape[:2], device=self.maps.device).scatter_(1, best, 1.0)
            return replace(self, maps=self.maps * wins[..., None, None])
        there = best.unique()
        parts = [None if part is None else part[:, there] for part in (self.maps, self.names, self.name_scores)]
        assert parts[0] is not None
        return Scores(maps=parts[0], names=parts[1], name_scores=parts[2])


class Stage(Protocol):
    """One step of the method."""

    @property
    def name(self) -> StageName:
        """As in settings."""
        ...

    @property
    def needs(self) -> frozenset[Need]:
        """The signals that it reads."""
        ...

    def run(self, signals: Signals, scores: Scores | None) -> Scores | None:
        """Scores from signals and the scores so far; the first stage is given None."""
        ...


@dataclass(frozen=True, kw_only=True)
class Propose:
    """DiffSeg itself, or normalised cuts: segments from self-attention alone."""

    name: StageName
    settings: SegmenterSettings
    tau: tuple[float, ...]
    needs: frozenset[Need] = frozenset({"attention"})

    def run(self, signals: Signals, scores: Scores | None) -> Scores:
        maps = propose(
            signals.attention, signals.finite, signals.grid, self.settings, self.tau, cut=self.name == "ncut"
        )
        return Scores(maps=maps)


@dataclass(frozen=True, kw_only=True)
class PixelAdaptive:
    """Borders follow the image (AFA's PAR)."""

    name: StageName = "par"
    needs: frozenset[Need] = frozenset()

    def run(self, signals: Signals, scores: Scores | None) -> Scores:
        scores = _given(scores, self.name).winning()
        refined = [refine(maps, pixels) for maps, pixels in zip(scores.maps, signals.pixels, strict=False)]
        return replace(scores, maps=torch.stack(refined))


@dataclass(frozen=True, kw_only=True)
class LearnedAttention:
    """What was learned of attention's heads takes the place of the attention, for the stages after it (AFA)."""

    name: StageName = "affinity"
    needs: frozenset[Need] = frozenset({"attention", "learned"})

    def run(self, signals: Signals, scores: Scores | None) -> Scores | None:
        learned = signals.learned
        if learned is None or learned.dense is None:
            raise ValueError("stage affinity replaces attention by what was learned of it: it was not given")
        signals.attention = as_attention(learned.dense, learned.grid, signals.grid)
        return scores


@dataclass(frozen=True, kw_only=True)
class RandomWalk:
    """Scores spread from where they are sure, along the self-attention (AffinityNet's random walk)."""

    settings: WalkSettings
    name: StageName = "walk"
    needs: frozenset[Need] = frozenset({"attention"})

    def run(self, signals: Signals, scores: Scores | None) -> Scores:
        scores = _given(scores, self.name).winning()
        settings = self.settings
        walked = random_walk(
            resize_maps(scores.maps, signals.grid),
            signals.attention[: len(scores.maps)],
            power=settings.walk_power,
            steps=settings.walk_steps,
            radius=settings.walk_radius,
            seeds=settings.walk_seeds,
            affinity=signals.learned.local if signals.learned else None,
        )
        return replace(scores, maps=walked)


@dataclass(frozen=True, kw_only=True)
class CrossNames:
    """Names of segments from cross-attention, or, where it is the first stage, classes from nothing else."""

    settings: SegmentNameSettings
    name: StageName = "cross"
    needs: frozenset[Need] = frozenset({"cross"})

    def run(self, signals: Signals, scores: Scores | None) -> Scores:
        if signals.cross is None or signals.name_counts is None:
            raise ValueError("stage cross names segments: names were not given")
        maps, _ = average_cross_attention(signals.cross, include_coarsest=self.settings.vote != "share")
        return named(maps, signals.name_counts, scores, self.settings)


@dataclass(frozen=True, kw_only=True)
class ClipNames:
    """Names of segments from CLIP's scores (MaskCLIP), or, where it is the first stage, classes from nothing else."""

    settings: SegmentNameSettings
    clip: ClipSettings
    name: StageName = "clip"
    needs: frozenset[Need] = frozenset({"attention", "clip"})

    def run(self, signals: Signals, scores: Scores | None) -> Scores:
        if signals.clip is None or signals.name_counts is None:
            raise ValueError("stage clip names segments: names, or scores of a CLIP for them, were not given")
        maps = denoise_names(signals.clip, self.clip.clip_denoise)
        if self.clip.clip_smooth:
            maps = smooth_scores(maps, signals.attention, signals.finite, signals.grid)
        # the other votes undo that maps of attention differ in strength, and these are shares
        return named(maps, signals.name_counts, scores, replace(self.settings, vote="share"))


def named(maps: torch.Tensor, counts: torch.Tensor, scores: Scores | None, settings: SegmentNameSettings) -> Scores:
    """Scores named by maps [B, T, h, w] of names, or the maps as scores of classes where there are none yet."""
    if scores is None:
        indices = torch.arange(maps.shape[1], device=maps.device).expand(len(maps), -1)
        return Scores(maps=class_maps(maps, counts), names=indices)
    names, sure = vote_names(scores.maps, maps, counts, settings.vote)
    return replace(
        scores, names=apply_thresholds(names, sure, settings.background_below, settings.ignore_below), name_scores=sure
    )


def _given(scores: Scores | None, name: str) -> Scores:
    if scores is None:
        raise ValueError(f"stage {name} changes scores: it cannot be the first")
    return scores


def stages_of(method: Sequence[StageName], settings: SegmenterSettings, tau: tuple[float, ...]) -> list[Stage]:
    """The stages of a method, in order."""
    return [_stage(name, settings, tau) for name in method]


def _stage(name: StageName, settings: SegmenterSettings, tau: tuple[float, ...]) -> Stage:
    match name:
        case "diffseg" | "ncut":
            return Propose(name=name, settings=settings, tau=tau)
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
    raise ValueError(f"stage {name!r} is unknown")


def with_name_scores(scores: Scores, settings: SegmentNameSettings) -> Scores:
    """Scores of classes as scores of named segments: with what is background and what is neither, and how sure."""
    if not scores.of_classes:
        return scores
    assert scores.names is not None
    maps = add_background(scores.maps, settings.background_below, settings.ignore_below)
    others = scores.names.new_tensor([BACKGROUND_INDEX, NO_NAME]).expand(len(maps), -1)
    wins = torch.nn.functional.one_hot(maps.argmax(dim=1), maps.shape[1]).permute(0, 3, 1, 2)
    strongest = scores.maps.amax(dim=1, keepdim=True) if scores.maps.shape[1] else torch.zeros_like(maps[:, :1])
    sure = (wins * strongest).sum(dim=(2, 3)) / wins.sum(dim=(2, 3)).clamp_min(1)
    return Scores(maps=maps, names=torch.cat([scores.names, others], dim=1), name_scores=sure)
