"""Networks from transformers: SegFormer, and a linear layer on the tokens of DINOv2 or a plain ViT.

They take the images of `pipeline.networks.unet`, so losses, targets and labelling are the same for all networks.

Axes: B images, S side of the square input in pixels, D outputs, h and w of the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    ViTConfig,
    ViTModel,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the colours of ImageNet, 0 to 1, by which SegFormer's and DINOv2's images are
normalised."""

MOST_LAYERS = 1000
"""Largest number of layers of a configuration that is built."""


class Backbone(NamedTuple):
    """A kind of plain transformer below the linear layer.

    Attributes:
        config: Class of its configuration.
        model: Class of the model.
        build: Further arguments of the model's constructor.
        call: Further arguments of a call.
        imagenet: Whether images are normalised by the colours of ImageNet, rather than to [−1, 1].
    """

    config: Any
    model: Any
    build: Mapping[str, Any] = {}
    call: Mapping[str, Any] = {}
    imagenet: bool = True


BACKBONES: Mapping[str, Backbone] = {
    "dinov2": Backbone(Dinov2Config, Dinov2Model),
    "dinov2_with_registers": Backbone(Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
    "vit": Backbone(
        ViTConfig, ViTModel, {"add_pooling_layer": False}, {"interpolate_pos_encoding": True}, imagenet=False
    ),
}
"""The backbones of `dinov2-linear` by their `model_type` in config.json."""

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "segformer": {"model_type": "segformer"},
    "dinov2-linear": {
        "model_type": "dinov2",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "image_size": 518,
    },
}
"""Configurations of the smallest published models, SegFormer-B0 and DINOv2's ViT-S/14, unless the user names one."""


class Segformer(nn.Module):
    """SegFormer (Xie et al., NeurIPS 2021): float32 [B, 3, S, S] in [−1, 1] to scores [B, D, S / 4, S / 4].

    Args:
        model: SegformerForSemanticSegmentation with D labels.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of images."""
        return self.model(pixel_values=normalised(images)).logits


class LinearOnTokens(nn.Module):
    """A linear layer on the last tokens of a plain transformer: float32 [B, 3, S, S] in [−1, 1] to [B, D, h, w].

    Images are resized to the nearest multiple of the patches' side p, so h = w = S / p, rounded.

    Args:
        backbone: The transformer; `BACKBONES` has its kind.
        dimensions: D.
        frozen: Whether only the linear layer is trained (linear probing).
    """

    def __init__(self, backbone: Any, dimensions: int, *, frozen: bool = False) -> None:
        super().__init__()
        self.backbone, self.frozen = backbone, frozen
        self.head = nn.Conv2d(backbone.config.hidden_size, dimensions, 1)
        backbone.requires_grad_(not frozen)
        mask_token = getattr(backbone.embeddings, "mask_token", None)
        if mask_token is not None:  # without a gradient, for which torch's distributed training would wait
            mask_token.requires_grad_(False)

    def train(self, mode: bool = True) -> LinearOnTokens:
        """Set the mode of training; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the output for images."""
        config, kind = self.backbone.config, BACKBONES[self.backbone.config.model_type]
        patch = int(config.patch_size)
        rows, columns = (max(1, round(int(side) / patch)) for side in images.shape[-2:])
        if (rows * patch, columns * patch) != tuple(images.shape[-2:]):
            images = F.interpolate(images, (rows * patch, columns * patch), mode="bilinear")
        pixels = normalised(images) if kind.imagenet else images
        # The first tokens are the class and the registers.
        tokens = self.backbone(pixel_values=pixels, **kind.call).last_hidden_state[:, -rows * columns :]
        return self.head(tokens.transpose(1, 2).unflatten(2, (rows, columns)))


def normalised(images: Tensor) -> Tensor:
    """Normalise float32 [B, 3, S, S] in [−1, 1] by the colours of ImageNet."""
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images / 2 + 0.5 - mean) / std


def config_of(network: str, plain: Mapping[str, Any], labels: Mapping[str, Any] | None = None) -> Any:
    """Return the configuration of a network from its values in a config.json.

    Args:
        network: segformer or dinov2-linear.
        plain: The values.
        labels: `id2label` and `label2id` of SegFormer, in the place of its own.

    Raises:
        ValueError: They are of another kind of model, or too large.
    """
    backbones = {name: backbone.config for name, backbone in BACKBONES.items()}
    kinds = {"segformer": SegformerConfig} if network == "segformer" else backbones
    kind = plain.get("model_type")
    if kind not in kinds:
        raise ValueError(f"model_type {kind!r}: the network {network} takes {', '.join(kinds)}")
    own = {name: value for name, value in plain.items() if not name.startswith("_") and name != "auto_map"}
    config = kinds[kind].from_dict(own | dict(labels or {}) if network == "segformer" else own)
    layers = config.depths if network == "segformer" else [config.num_hidden_layers]
    if sum(layers) > MOST_LAYERS:
        raise ValueError(f"{sum(layers)} layers: expected at most {MOST_LAYERS}")
    return config


def build(network: str, config: Any, dimensions: int) -> Segformer | LinearOnTokens:
    """Return a network whose weights are drawn from torch's generator.

    Args:
        network: segformer or dinov2-linear.
        config: Its configuration, see `config_of`.
        dimensions: D; that of segformer is the number of labels of its configuration.
    """
    if network == "segformer":
        return Segformer(SegformerForSemanticSegmentation(config))
    kind = BACKBONES[config.model_type]
    return LinearOnTokens(kind.model(config, **kind.build), dimensions)
