"""Networks from transformers: SegFormer, and a linear layer on the tokens of DINOv2 or a plain ViT.

They take the images of `pipeline.networks.unet`, so losses, targets and labelling are the same for all networks. Only
safetensors are read, and no code of a repository is run.

Axes: B images, S side of the square input in pixels, D outputs, h and w of the output.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
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
from transformers.utils import logging as transformers_logging

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

VIT_SMALL = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 518,
}
"""The backbone of `dinov2-linear` unless the user names one: that of DINOv2's smallest model."""


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


def config_of(network: str, plain: Mapping[str, Any]) -> Any:
    """Return the configuration of a network from its values in a config.json.

    Args:
        network: segformer or dinov2-linear.
        plain: The values.

    Raises:
        ValueError: They are of another kind of model, or too large.
    """
    backbones = {name: backbone.config for name, backbone in BACKBONES.items()}
    kinds = {"segformer": SegformerConfig} if network == "segformer" else backbones
    kind = plain.get("model_type")
    if kind not in kinds:
        raise ValueError(f"model_type {kind!r}: the network {network} takes {', '.join(kinds)}")
    own = {name: value for name, value in plain.items() if not name.startswith("_") and name != "auto_map"}
    config = kinds[kind].from_dict(own)
    layers = config.depths if network == "segformer" else [config.num_hidden_layers]
    if sum(layers) > MOST_LAYERS:
        raise ValueError(f"{sum(layers)} layers: expected at most {MOST_LAYERS}")
    return config


def new_network(
    network: str, dimensions: int, class_names: Sequence[str], plain: Mapping[str, Any], weights: str | None
) -> nn.Module:
    """Return a network to be trained. Weights that no file has are drawn from torch's generator.

    Args:
        network: segformer or dinov2-linear.
        dimensions: D.
        class_names: Name of each output; empty if the outputs are no classes.
        plain: The values of its config.json; empty for those of the smallest published model.
        weights: Folder with the weights to start from, or None to draw all of them. The backbone of dinov2-linear then
            stays as it is, and only the linear layer is trained.

    Raises:
        ValueError: The configuration or the weights are of another kind of model.
    """
    if network == "dinov2-linear":
        config = config_of(network, plain or VIT_SMALL)
        kind = BACKBONES[config.model_type]
        backbone = kind.model(config, **kind.build) if weights is None else _pretrained(kind.model, weights, kind.build)
        return LinearOnTokens(backbone, dimensions, frozen=weights is not None).train()
    names = dict(enumerate(class_names)) if class_names else {i: f"dimension {i}" for i in range(dimensions)}
    labels = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    if weights is None:
        config = config_of(network, {"model_type": "segformer", **plain, **labels})
        return Segformer(SegformerForSemanticSegmentation(config)).train()
    options = {**labels, "ignore_mismatched_sizes": True}
    model = _pretrained(SegformerForSemanticSegmentation, weights, options, may_lack="decode_head.")
    return Segformer(model).train()


def _pretrained(model: Any, folder: str, options: Mapping[str, Any], *, may_lack: str | None = None) -> Any:
    """Load a model of transformers. Weights may be missing only if their names begin with `may_lack`."""
    try:
        with _quiet():
            loaded, report = model.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
            )
    except MemoryError:
        raise
    except Exception as error:  # a configuration with wrong values raises errors of any class while a model is built
        raise ValueError(f"{folder}: its files do not load: {error}") from error
    lacking = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if missing := sorted(name for name in lacking if may_lack is None or not name.startswith(may_lack)):
        raise ValueError(f"{folder}: its files lack weights: {missing[0]} is one of {len(missing)}")
    return loaded


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing progress bars, and tables of weights that are checked here."""
    level, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if has_bars:
            transformers_logging.enable_progress_bar()


def plain_config(network: nn.Module) -> dict[str, Any]:
    """Return what config.json holds of a network of transformers, from which `from_pretrained` can rebuild it."""
    assert isinstance(network, Segformer | LinearOnTokens)
    config: Any = network.model.config if isinstance(network, Segformer) else network.backbone.config
    own = {"architectures": ["SegformerForSemanticSegmentation"]} if isinstance(network, Segformer) else {}
    plain = json.loads(config.to_json_string(use_diff=False)) | own
    return {name: value for name, value in plain.items() if not name.startswith("_")}


def to_bytes(network: nn.Module) -> bytes:
    """Return the weights of a network as safetensors; those of SegFormer with the names that transformers writes."""
    if not isinstance(network, Segformer):
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        return save(tensors, {"format": "pt"})
    with tempfile.TemporaryDirectory() as folder, _quiet():
        network.model.save_pretrained(folder)
        return Path(folder, "model.safetensors").read_bytes()


def from_bytes(config: Mapping[str, Any], weights: bytes) -> nn.Module:
    """Return the trained network of a config.json and the content of its file of weights.

    Raises:
        ValueError: They do not fit each other, or are of another kind of network.
    """
    backbone, tensors = config_of(config["network"], config), load(weights)
    found = sum(tensor.numel() for tensor in tensors.values())
    # A configuration may come from anywhere, so its size is compared before memory is reserved for it.
    with torch.device("meta"):
        expected = sum(tensor.numel() for tensor in _rebuild(config["network"], backbone, config).state_dict().values())
    if found != expected:
        raise ValueError(f"config.json is of a network with {expected:,} numbers, and the weights are {found:,}")
    if config["network"] == "segformer":
        with tempfile.TemporaryDirectory() as folder:
            backbone.save_pretrained(folder)
            Path(folder, "model.safetensors").write_bytes(weights)
            return Segformer(_pretrained(SegformerForSemanticSegmentation, folder, {}))
    network = _rebuild(config["network"], backbone, config)
    network.load_state_dict(tensors)
    return network


def _rebuild(network: str, backbone: Any, config: Mapping[str, Any]) -> nn.Module:
    """Return a network with drawn weights."""
    if network == "segformer":
        return Segformer(SegformerForSemanticSegmentation(backbone))
    kind = BACKBONES[backbone.model_type]
    return LinearOnTokens(kind.model(backbone, **kind.build), config["dimensions"])


def image_processor(size: int) -> dict[str, Any]:
    """Return preprocessor_config.json, by which transformers prepares images as the training did."""
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "do_reduce_labels": False,
    }
