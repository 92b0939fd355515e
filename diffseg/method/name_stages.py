"""Stages that name segments, or find classes; see `diffseg.method.stages`.

Axes: B images of the batch, T names, W background words, h and w positions of a map.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from diffseg.attention.aggregate import average_cross_attention
from diffseg.component_settings import ClipSettings, SegmentNameSettings
from diffseg.method.clip_naming import denoise_names, smooth_scores
from diffseg.method.naming import BACKGROUND_INDEX, NO_NAME, add_background, apply_thresholds, class_maps, vote_names
from diffseg.method.signals import Need, Scores, Signals
from diffseg.settings import StageName


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

    The features of segments are means over the finished label map, so segments are named once the label map is finished
    (`diffseg.method.reference_names`), as in `diffseg name`. If this is the first stage, each name is a class (ReCo;
    Shin et al., NeurIPS 2022, section 3).
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
