"""Stages that propose segments, or change where segments and classes win; see `diffseg.method.stages`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from diffseg.affinity.affinity import as_attention
from diffseg.component_settings import WalkSettings
from diffseg.method.par import refine
from diffseg.method.proposals import propose, propose_with_leaves
from diffseg.method.random_walk import random_walk, resize_maps
from diffseg.method.signals import Need, Scores, Signals
from diffseg.settings import SegmenterSettings, StageName
from diffseg.variants.cluster import propose_by_covariance


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
        settings = self.settings.covariance
        counts = [settings.covariance_segments] * len(signals.finite)
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


def _require_scores(scores: Scores | None, name: str) -> Scores:
    if scores is None:
        raise ValueError(f"stage {name} changes scores: it cannot be the first")
    return scores
