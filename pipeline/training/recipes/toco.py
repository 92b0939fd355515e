"""ToCo (Ru et al., CVPR 2023): a plain ViT learns pixels from the classes of images, by contrast of its tokens.

Two contrasts keep its tokens from becoming alike. Patch token contrast (PTC) compares the final tokens with what an
auxiliary classifier sees in an earlier block. Class token contrast (CTC) pulls crops of uncertain regions to the whole
image and pushes crops of background away from it.

Departures from the published code: the loss of PTC is a mean over images; that of CTC is computed from logarithms, so
that it stays finite; one mirroring holds for all views of an image; and the energy loss, which needs a compiled
extension, is left out.

Axes: B images, S side of the square images, C classes without the background, D channels, h and w tokens, V views.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks.vit import ViTSegmenter
from pipeline.training.recipes import cams
from pipeline.training.recipes.crops import crop_side, draw_crops, recoloured
from pipeline.training.recipes.losses import affinity_loss, balanced_cross_entropy, class_token_contrast
from pipeline.training.recipes.settings import IGNORE_INDEX
from pipeline.training.recipes.weak import PIXELS_FROM, Sample, WeakRecipe, random_numbers

THRESHOLDS = cams.Thresholds(high=0.7, low=0.25)

MOMENTUM = 0.9
"""Share of the teacher's weights in their new values at each step; the rest comes from the student's weights."""

SEGMENTATION_WEIGHT = 0.1

MOST_TOKENS = 1024
"""Largest number of tokens of an image that are compared; all pairs of them are held in memory."""

HIDDEN, BOTTLENECK, OUTPUTS = 2048, 256, 1024
"""Channels of the contrast's head: in its hidden layers, before its last layer, and at its output. The first is at most
four times the number of channels of the transformer, and the second at most that number."""


class ContrastHead(nn.Module):
    """A projection of class tokens as in DINO: [B, D] to [B, 1024].

    Its last layer multiplies a vector of length 1 by weights of length 1, so that all outputs are from −1 to 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden, bottleneck = min(HIDDEN, 4 * channels), min(BOTTLENECK, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.last = nn.Linear(bottleneck, OUTPUTS, bias=False)
        for layer in (*self.mlp, self.last):
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the projection of class tokens."""
        return F.linear(F.normalize(self.mlp(tokens), dim=-1), F.normalize(self.last.weight, dim=-1))


class Output(NamedTuple):
    """What a step computes with a gradient.

    Attributes:
        logits: Scores of the classes of whole images, [B, C].
        auxiliary: Scores of the auxiliary classifier, [B, C].
        final: Final tokens, [B, D, h, w].
        scores: Scores of pixels, [B, 1 + C, h, w].
        student: Projections of two global views and the crops, [B, 2 + V, 1024].
        teacher: Projections of the two global views by the teacher, [B, 2, 1024], without a gradient.
    """

    logits: Tensor
    auxiliary: Tensor
    final: Tensor
    scores: Tensor
    student: Tensor
    teacher: Tensor


class TocoNetwork(nn.Module):
    """The network that will label, with both classifiers and both heads of the contrast."""

    def __init__(self, segmenter: ViTSegmenter, classes: int) -> None:
        super().__init__()
        channels = segmenter.encoder.config.channels
        self.segmenter = segmenter
        self.classifier = nn.Conv2d(channels, classes, 1, bias=False)
        self.auxiliary = nn.Conv2d(channels, classes, 1, bias=False)
        self.student = ContrastHead(channels)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of both classifiers at every token, [B, C, h, w] each."""
        tokens = self.segmenter.encoder(images)
        return self.classifier(tokens.final), self.auxiliary(tokens.early)

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Move the teacher's head a little towards the student's."""
        for mean, weight in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mean.lerp_(weight, 1 - MOMENTUM)

    def forward(self, images: Tensor, view: Tensor, crops: Tensor) -> Output:
        """Return the outputs for images and a second global view, [B, 3, S, S], and crops, [B V, 3, side, side]."""
        tokens = self.segmenter.encoder(images)
        others = self.segmenter.encoder(view).image
        views = torch.stack([tokens.image, others], dim=1)
        parts = self.segmenter.encoder(crops).image.unflatten(0, (len(images), -1))
        return Output(
            logits=self.classifier(F.adaptive_max_pool2d(tokens.final, 1)).flatten(1),
            auxiliary=self.auxiliary(F.adaptive_max_pool2d(tokens.early, 1)).flatten(1),
            final=tokens.final,
            scores=self.segmenter.decoder(tokens.final),
            student=self.student(torch.cat([views, parts], dim=1)),
            teacher=self.teacher(views.detach()),
        )


class Targets(NamedTuple):
    """What is learned about tokens and pixels, made from the classes or from the label maps of a batch.

    Attributes:
        tokens: Classes of tokens for PTC, int64 [B, h, w], with the ignore index.
        regions: 0 background, 1 uncertain, 2 object, int64 [B, s, s].
        pixels: Classes of pixels, int64 [B, S, S], with the ignore index.
    """

    tokens: Tensor
    regions: Tensor
    pixels: Tensor


class Toco(WeakRecipe):
    """Losses of classification, PTC, CTC and segmentation. The segmentation starts after a tenth of the steps."""

    power = 0.9
    with_heads = TocoNetwork
    network: TocoNetwork

    def losses(
        self, network: nn.Module, batch: dict[str, Any], *, step: int, seed: tuple[int, ...], device: str | torch.device
    ) -> dict[str, Tensor]:
        """Compute the weighted sum of all losses, and each of them without its weight."""
        self.network.update_teacher()
        sample = Sample.of(batch, device)
        targets = self.targets(sample)
        rngs = random_numbers(seed, len(sample.images))
        size, patch = sample.images.shape[-1], self.network.segmenter.encoder.config.patch
        crops = draw_crops(targets.regions, size, crop_side(size, patch), rngs)
        view, local = recoloured(sample.images, rngs), recoloured(sample.images, rngs)
        output: Output = network(sample.images, view, crops.cut(local))
        parts = self._parts(sample, targets, output, crops.positive, rngs)
        settings = self.settings
        segmentation_weight = SEGMENTATION_WEIGHT if self.progress(step) >= PIXELS_FROM else 0.0
        contrasts = settings.ptc_weight * parts["ptc"] + settings.ctc_weight * parts["ctc"]
        loss = parts["classes"] + parts["auxiliary"] + contrasts + segmentation_weight * parts["segmentation"]
        return {"loss": loss, **parts}

    @torch.no_grad()
    def targets(self, sample: Sample) -> Targets:
        """Return the targets of a batch from CAMs, or from its label maps."""
        patch = self.network.segmenter.encoder.config.patch
        side = max(1, round(sample.images.shape[-1] / patch))
        if self.settings.pixel_targets == "labels":
            mask = sample.mask
            regions = torch.where(mask == IGNORE_INDEX, 1, 2 * (mask > 0).long())
            return Targets(cams.at_tokens(mask, side), regions, mask)
        maps, auxiliary = cams.activation_maps(self.network.maps, sample.images, sample.present)
        at_tokens = F.interpolate(auxiliary, (side, side), mode="bilinear")
        return Targets(
            tokens=cams.labels_of(at_tokens, THRESHOLDS),
            regions=cams.regions_of(auxiliary, THRESHOLDS),
            pixels=cams.refined_labels(maps, sample.present, sample.images, THRESHOLDS),
        )

    def _parts(
        self, sample: Sample, targets: Targets, output: Output, positive: Tensor, rngs: Sequence[Any]
    ) -> dict[str, Tensor]:
        """Return each loss without its weight, and the mean similarity of the final tokens."""
        tokens, classes = output.final.flatten(2).transpose(1, 2), targets.tokens.flatten(1)
        if tokens.shape[1] > MOST_TOKENS:
            drawn = [torch.from_numpy(rng.permutation(tokens.shape[1])[:MOST_TOKENS]) for rng in rngs]
            chosen = torch.stack(drawn).to(tokens.device)
            tokens = tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[2]))
            classes = classes.gather(1, chosen)
        views = torch.cat([positive.new_ones(len(positive), 2), positive], dim=1)  # the global views may show an object
        scores = F.interpolate(output.scores, sample.images.shape[2:], mode="bilinear")
        return {
            "classes": F.multilabel_soft_margin_loss(output.logits, sample.present),
            "auxiliary": F.multilabel_soft_margin_loss(output.auxiliary, sample.present),
            "ptc": affinity_loss(tokens, classes, IGNORE_INDEX).loss,
            "ctc": class_token_contrast(output.student, output.teacher, views),
            "segmentation": balanced_cross_entropy(scores, targets.pixels, IGNORE_INDEX),
            "similarity": mean_similarity(output.final.detach()),
        }


def mean_similarity(tokens: Tensor) -> Tensor:
    """Return the mean |cosine| over all pairs of different tokens of an image, [], the mean over images.

    Args:
        tokens: [B, D, h, w].
    """
    unit = F.normalize(tokens.flatten(2), dim=1)
    similarity = (unit.transpose(1, 2) @ unit).abs()
    count = similarity.shape[1]
    return ((similarity.sum(dim=(1, 2)) - count) / max(1, count * (count - 1))).mean()
