"""AFA (Ru et al., CVPR 2022): affinity of tokens, predicted from a transformer's attention, refines its CAMs.

Departures from the paper: the transformer is a plain ViT instead of a MiT, so its decoder is that of ToCo;
the affinity loss is averaged within each image first.

Axes: B images, S side of the square images, C classes without the background, N tokens, H heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks.vit import ViTSegmenter
from pipeline.training.recipes import cams
from pipeline.training.recipes.losses import balanced_cross_entropy, token_affinity_loss
from pipeline.training.recipes.settings import IGNORE_INDEX
from pipeline.training.recipes.weak import PIXELS_FROM, Sample, WeakRecipe

THRESHOLDS = cams.Thresholds(high=0.55, low=0.35)

RADIUS = 8
"""Largest distance, along rows and along columns, of two tokens that have an affinity."""

SPREAD_FROM = 0.3
"""Share of the steps after which affinity spreads the CAMs: 6,000 of the paper's 20,000."""

SEGMENTATION_WEIGHT, AFFINITY_WEIGHT = 0.1, 0.1


class Output(NamedTuple):
    """What a step computes with a gradient.

    Attributes:
        logits: Scores of the classes of whole images, [B, C].
        affinity: Affinity of tokens, [B, N, N], 0 to 1, symmetric.
        scores: Scores of pixels, [B, 1 + C, h, w].
    """

    logits: Tensor
    affinity: Tensor
    scores: Tensor


class AfaNetwork(nn.Module):
    """The network that will label, with a classifier and the affinity of tokens from the last two blocks' attention."""

    def __init__(self, segmenter: ViTSegmenter, classes: int) -> None:
        super().__init__()
        config = segmenter.encoder.config
        self.segmenter = segmenter
        self.classifier = nn.Conv2d(config.channels, classes, 1, bias=False)
        self.affinity = nn.Conv2d(min(2, config.blocks) * config.heads, 1, 1)

    def maps(self, images: Tensor) -> tuple[Tensor]:
        """Return the scores of the classifier at every token, [B, C, h, w]."""
        return (self.classifier(self.segmenter.encoder(images).final),)

    def forward(self, images: Tensor) -> Output:
        """Return the outputs for images [B, 3, S, S]."""
        tokens = self.segmenter.encoder(images, with_attention=True)
        assert tokens.attention is not None
        both = tokens.attention + tokens.attention.transpose(2, 3)
        return Output(
            logits=self.classifier(F.adaptive_max_pool2d(tokens.final, 1)).flatten(1),
            affinity=self.affinity(both)[:, 0].sigmoid(),
            scores=self.segmenter.decoder(tokens.final),
        )


class Afa(WeakRecipe):
    """Losses of classification, segmentation and affinity; only the first until a tenth of the steps are done."""

    power = 1.0
    with_heads = AfaNetwork
    network: AfaNetwork

    def losses(
        self, network: nn.Module, batch: dict[str, Any], *, step: int, seed: tuple[int, ...], device: str | torch.device
    ) -> dict[str, Tensor]:
        """Compute the weighted sum of all losses, and each of them without its weight."""
        sample = Sample.of(batch, device)
        output: Output = network(sample.images)
        reliable, pixels = self.targets(sample, output.affinity.detach(), spread=self.progress(step) >= SPREAD_FROM)
        side = output.scores.shape[-1]
        scores = F.interpolate(output.scores, sample.images.shape[2:], mode="bilinear")
        parts = {
            "classes": F.multilabel_soft_margin_loss(output.logits, sample.present),
            "segmentation": balanced_cross_entropy(scores, pixels, IGNORE_INDEX),
            "affinity": token_affinity_loss(
                output.affinity,
                cams.at_tokens(reliable, side).flatten(1),
                neighbours(side, scores.device),
                IGNORE_INDEX,
            ),
        }
        weight = 1.0 if self.progress(step) >= PIXELS_FROM else 0.0
        further = SEGMENTATION_WEIGHT * parts["segmentation"] + AFFINITY_WEIGHT * parts["affinity"]
        return {"loss": parts["classes"] + weight * further, **parts}

    @torch.no_grad()
    def targets(self, sample: Sample, affinity: Tensor, *, spread: bool) -> tuple[Tensor, Tensor]:
        """Return the labels that affinity and segmentation learn from, int64 [B, S, S] each."""
        if self.settings.pixel_targets == "labels":
            return sample.mask, sample.mask
        (maps,) = cams.activation_maps(self.network.maps, sample.images, sample.present)
        reliable = cams.refined_labels(maps, sample.present, sample.images, THRESHOLDS)
        if not spread:
            return reliable, reliable
        steps = transitions(affinity)
        return reliable, cams.refined_labels(maps, sample.present, sample.images, THRESHOLDS, steps)


def neighbours(side: int, device: torch.device) -> Tensor:
    """Return which pairs of a square grid of tokens are at most `RADIUS` apart, bool [N, N]."""
    tokens = torch.arange(side * side, device=device)
    rows, columns = tokens // side, tokens % side
    return torch.stack([(axis[:, None] - axis).abs() <= RADIUS for axis in (rows, columns)]).all(dim=0)


def transitions(affinity: Tensor) -> Tensor:
    """Return the weights by which scores spread between tokens: [B, N, N], squared affinity of neighbours.

    Each column is divided by a little more than its sum.

    Args:
        affinity: [B, N, N].
    """
    near = neighbours(round(affinity.shape[-1] ** 0.5), affinity.device)
    squared = (affinity * near).square()
    return squared / (squared.sum(dim=1, keepdim=True) + 0.1)
