"""DenseCLIP (Rao et al., CVPR 2022): a decoder that reads text-score maps, with texts that depend on the image.

With two departures from the paper the network takes names that it was not trained on, in any order. The paper
concatenates the K channels of the score map to the last feature, and its decoder ends in K channels; here the score map
is concatenated as the mean of the vectors of the classes, weighted by its softmax, and the decoder ends in vectors that
are compared with the classes. Also, the dense features are those of any `ClipLayout`, beside a small convolutional
network that adds detail within the patches, or they are those of that network alone.

Axes: B images, S side of the square input in pixels, K classes with the background first, D dimensions of the shared
space, N = h·w positions of the dense features, w channels of the finest level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffseg.clip.layout import ClipLayout
from diffseg.clip.text_model import TextModel
from pipeline.networks.text_classes import TAU, TextClasses, similarities
from pipeline.networks.unet import SegmentationNetwork

CONTEXT = 8
"""Learnable tokens before a name, as in the paper's configuration for a ResNet-50."""

GAMMA = 1e-4
"""Initial value of γ, the factor of what the context decoder adds to a text (section 3.3)."""


class ContextDecoder(nn.Module):
    """Post-model prompting (section 3.3): a transformer that adds to the vector of each class what the image shows.

    Args:
        dimensions: D.
        width: Features of a token in the transformer.
        heads: Attention heads.
        layers: Layers of the transformer decoder.
        dropout: Probability of dropout.
    """

    def __init__(
        self, dimensions: int, *, width: int = 256, heads: int = 4, layers: int = 3, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.read_text = nn.Sequential(nn.LayerNorm(dimensions), nn.Linear(dimensions, width))
        self.read_image = nn.Sequential(nn.LayerNorm(dimensions), nn.Linear(dimensions, width), nn.LayerNorm(width))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dimensions))
        self.gamma = nn.Parameter(torch.full((dimensions,), GAMMA))

    def forward(self, classes: Tensor, dense: Tensor) -> Tensor:
        """Return the classes of each image, t + γ Δ.

        Args:
            classes: Vectors of length 1, [K, D].
            dense: Dense features z, [B, D, h, w].

        Returns:
            Vectors of length 1, [B, K, D].
        """
        positions = dense.flatten(2).transpose(1, 2)
        memory = self.read_image(torch.cat([positions.mean(dim=1, keepdim=True), positions], dim=1))
        texts = classes.expand(len(dense), -1, -1)
        x = self.read_text(texts)
        for layer in self.layers:
            x = layer(x, memory)
        return F.normalize(texts + self.gamma * self.leave(x), dim=2)


class ClipImages(nn.Module):
    """The image encoder of a CLIP: float32 [B, 3, S, S] in [−1, 1] to dense features [B, D, h, w].

    It stays in evaluation mode. Weights that the dense features do not depend on are not trained.

    Args:
        layout: The CLIP.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layout: ClipLayout) -> None:
        super().__init__()
        self._layout = layout
        parts = ("vision_model", "visual_projection", "visual")  # in transformers, and in open_clip
        self.parts = nn.ModuleDict({name: part for name, part in layout.model.named_children() if name in parts})
        self.register_buffer("mean", layout.mean.clone(), persistent=False)
        self.register_buffer("std", layout.std.clone(), persistent=False)
        self.requires_grad_(True)
        with torch.enable_grad():
            layout.dense(torch.zeros(1, 3, layout.image_size, layout.image_size)).sum().backward()
        for weight in self.parameters():  # distributed training would wait for the gradients of the others
            weight.requires_grad_(weight.grad is not None)
        self.zero_grad(set_to_none=True)
        self.eval()

    def train(self, mode: bool = True) -> ClipImages:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the dense features of images, resized to whole patches, and at least to the CLIP's image size."""
        layout = self._layout
        side = round(max(images.shape[-1], layout.image_size) / layout.patch) * layout.patch
        if side != images.shape[-1]:
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True)
        tokens = layout.dense(((images.clamp(-1, 1) + 1) / 2 - self.mean) / self.std)
        return tokens.transpose(1, 2).unflatten(2, (side // layout.patch, side // layout.patch))


class DenseClip(nn.Module):
    """Maps float32 [B, 3, S, S] in [−1, 1] to scores [B, K, S / 2, S / 2].

    With a CLIP, its image encoder makes the dense features. With the text encoder of Stable Diffusion alone, they are
    a linear layer on the deepest level of the convolutional network, and a linear layer maps the texts to their space.

    Args:
        text: The text encoder, with its CLIP if it belongs to one.
        names: K − 1 names.
        width: Channels of the convolutional network's finest level, a multiple of 8.
    """

    def __init__(self, text: TextModel, names: Sequence[str], *, width: int) -> None:
        super().__init__()
        self.classes = TextClasses(text, names, context=CONTEXT, project=text.clip is None)
        dimensions = self.classes.dimensions
        self.pixels = SegmentationNetwork(width=width, dimensions=dimensions)
        self.clip = None if text.clip is None else ClipImages(text.clip.layout)
        self.dense = nn.Conv2d(8 * width, dimensions, 1) if text.clip is None else nn.Identity()
        self.context = ContextDecoder(dimensions)
        self.fuse = nn.Conv2d(8 * width + 2 * dimensions, 8 * width, 1)

    def forward(self, images: Tensor, *, with_score_map: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Return the scores of images and, if asked for, the score map s / τ, [B, K, h, w]."""
        levels = self.pixels.encode(images)
        deepest = levels[-1]
        dense = self.clip(images) if self.clip is not None else self.dense(deepest)
        classes = self.context(self.classes(), dense)
        score_map = similarities(dense, classes) / TAU
        expected = torch.einsum("bkhw,bkd->bdhw", score_map.softmax(dim=1), classes)
        added = F.interpolate(
            torch.cat([F.normalize(dense, dim=1), expected], dim=1), deepest.shape[2:], mode="bilinear"
        )
        levels[-1] = self.fuse(torch.cat([deepest, added], dim=1))
        scores = similarities(self.pixels.decode(levels), classes) / TAU
        return (scores, score_map) if with_score_map else scores
