"""What the stages of the method read and write: the signals of a batch of images, and scores of proposals.

Axes: B images of the batch, P positions of the working grid, K proposals, h and w positions of a map, T names, S pixels
of the model's square.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from diffseg.affinity.affinity import Affinity
from diffseg.attention.layer_output import LayerOutput
from diffseg.attention.maps import CrossAttention, Grid
from diffseg.method.leaves import LeafSignals
from diffseg.variants.record import VariantResponse

Need = Literal[
    "self_attention", "cross_attention", "clip", "affinity", "features", "layer_output", "variants", "references"
]
"""A signal that a stage cannot run without."""


@dataclass(kw_only=True, eq=False)
class Signals:
    """What the model computed for a batch of images. A signal that no stage of the run needs is None.

    Attributes:
        pixels: float32 [B, 3, S, S] in [−1, 1].
        grid: Height and width of the working grid.
        self_attention: float32 [B, P, P], aggregated self-attention, whose rows sum to 1.
        finite: bool [B], whether the self-attention of an image is finite.
        cross_attention: Cross-attention of names, 0 for the names that an image lacks, and then of background words.
        clip_probabilities: float32 [B, T, h', w'], CLIP's probability of each name at each position, 0 to 1. Their sum
            over the names of an image is at most 1. The last maps may belong to background words.
        name_counts: int64 [B], the number of names of each image.
        background_words: W, how many of the last maps belong to background words and not to names.
        features: float16 [B, E, h', w'], features of positions, see `diffseg.method.segment_features`.
        reference_maps: float32 [B, T, h', w'], the cosine of each position with the nearest reference of each name, 0
            where it is negative; the last map is that of the background if the references have one.
        references_background: Whether they have one.
        affinity: Learned affinity, if a file of it was given.
        layer_output: Output of one self-attention layer, see `diffseg.attention.layer_output`.
        variants: How positions respond to noise.
    """

    pixels: torch.Tensor
    grid: Grid
    self_attention: torch.Tensor
    finite: torch.Tensor
    cross_attention: CrossAttention | None = None
    clip_probabilities: torch.Tensor | None = None
    name_counts: torch.Tensor | None = None
    background_words: int = 0
    features: torch.Tensor | None = None
    reference_maps: torch.Tensor | None = None
    references_background: bool = False
    affinity: Affinity | None = None
    layer_output: LayerOutput | None = None
    variants: VariantResponse | None = None

    def of_images(self, start: int, stop: int) -> Signals:
        """Return the signals of the images from `start` up to `stop` of the batch, as views."""
        part = slice(start, stop)
        return Signals(
            pixels=self.pixels[part],
            grid=self.grid,
            self_attention=self.self_attention[part],
            finite=self.finite[part],
            cross_attention=self.cross_attention and self.cross_attention.of_images(start, stop),
            clip_probabilities=None if self.clip_probabilities is None else self.clip_probabilities[part],
            name_counts=None if self.name_counts is None else self.name_counts[part],
            background_words=self.background_words,
            features=None if self.features is None else self.features[part],
            reference_maps=None if self.reference_maps is None else self.reference_maps[part],
            references_background=self.references_background,
            affinity=self.affinity and self.affinity.of_images(start, stop),
            layer_output=self.layer_output and self.layer_output.of_images(start, stop),
            variants=self.variants and self.variants.of_images(start, stop),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """How strongly each position belongs to each proposal.

    Attributes:
        maps: float32 [B, K, h, w], ≥ 0 and finite, on any grid.
        names: int64 [B, K], the index of each proposal's name, see `diffseg.method.naming`; None without names.
        name_scores: float32 [B, K], 0 to 1; None where the proposals are the names themselves.
        leaves: What levels are made of; None unless levels are requested.
    """

    maps: torch.Tensor
    names: torch.Tensor | None = None
    name_scores: torch.Tensor | None = None
    leaves: LeafSignals | None = None

    @property
    def of_classes(self) -> bool:
        """Whether each map belongs to a name, so that the proposals are classes."""
        return self.names is not None and self.name_scores is None

    def winning(self) -> Scores:
        """Drop the proposals that are the highest nowhere; in a batch, and on a device, set them to 0 instead."""
        best = self.maps.argmax(dim=1).flatten(1)
        if len(self.maps) > 1 or self.maps.device.type != "cpu":
            wins = torch.zeros(self.maps.shape[:2], device=self.maps.device).scatter_(1, best, 1.0)
            return replace(self, maps=self.maps * wins[..., None, None])
        winners = best.unique()
        return Scores(
            maps=self.maps[:, winners],
            names=None if self.names is None else self.names[:, winners],
            name_scores=None if self.name_scores is None else self.name_scores[:, winners],
            leaves=self.leaves,
        )
