"""The settings that a recipe reads. They import no torch, because the command line is made from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Target = Literal["segments", "classes"]
NetworkName = Literal["unet", "segformer", "dinov2-linear", "vit"]
PixelTargets = Literal["cam", "labels"]
RecipeName = Literal["plain", "afa", "toco", "denseclip", "maskclip"]

FROM_IMAGES = ("afa", "toco")
"""Recipes that learn from the classes that an image shows."""

IGNORE_INDEX = -100
"""Label of ignored pixels; the default `ignore_index` of PyTorch's losses."""


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """What is learned, by which network, and how; `pipeline.training.settings.TrainSettings` adds the samples."""

    target: Target = "segments"
    """What the network learns. segments: whether pixels belong together, which needs no names. classes: the class of
    each pixel, which needs a run with names."""
    recipe: RecipeName = "plain"
    """How it learns. plain: from the pixels of the label maps. afa and toco: from the names of an image's segments, by
    class activation maps of the network vit (AFA, ToCo). denseclip: like plain, by a network of its own that reads how
    well each position fits the names (DenseCLIP). maskclip: like plain, with the vectors of the names as a classifier
    that is not trained (MaskCLIP+). The last two need --text-model and can label with other names."""
    text_model: str | None = None
    """The model whose text encoder turns names into vectors for denseclip and maskclip, and is not trained: a folder or
    hub id of a CLIP or SigLIP, whose image encoder denseclip trains further, or of a Stable Diffusion checkpoint, or
    tiny-text. It must stay there as long as the network is used."""
    network: NetworkName = "unet"
    """unet: a small U-Net of this program. segformer: SegFormer. dinov2-linear: a linear layer on the tokens of DINOv2
    or of a plain ViT; these two come from transformers. vit: a plain ViT with a small decoder."""
    backbone: str | None = None
    """What segformer, dinov2-linear and vit start from: a folder or hub id with config.json and safetensors, such as
    facebook/dinov2-small, or the path of a config.json, whose weights are drawn at random. vit also takes the files of
    timm. Of dinov2-linear with given weights only the linear layer is trained. Default: SegFormer-B0, ViT-S/14 and, for
    vit, ViT-S/16 with random weights."""
    pixel_targets: PixelTargets = "cam"
    """What afa and toco take for the classes of pixels. cam: their own class activation maps, so that only the names in
    a label map matter. labels: the label map, whose ignored pixels are uncertain."""
    ptc_weight: float = 0.2
    """Weight of toco's patch token contrast."""
    ctc_weight: float = 0.5
    """Weight of toco's class token contrast."""
    steps: int = 2000
    """Number of optimiser steps; all workers make each step together."""
    size: int = 256
    """Side of the square crops in pixels, a multiple of 32."""
    learning_rate: float = 3e-3
    """Highest learning rate, reached after the first twentieth of the steps; it then falls along half a cosine. A
    pretrained segformer needs a lower one, such as 0.0002. afa and toco, which have the schedule of their papers, need
    0.00006 with given weights, and about 0.0005 from scratch."""
    width: int = 24
    """Channels of unet's finest level, a multiple of 8; the deepest level has eight times as many."""

    def __post_init__(self) -> None:
        if min(self.steps, self.width) < 1 or self.learning_rate <= 0:
            raise ValueError(
                f"steps {self.steps}, width {self.width}, learning rate {self.learning_rate}: expected at least 1 step "
                "and channel, and a rate above 0"
            )
        if self.size < 32 or self.size % 32:
            raise ValueError(f"size {self.size}: expected a multiple of 32 pixels")
        if self.width % 8:
            raise ValueError(f"width {self.width}: expected a multiple of 8")
        if self.network == "unet" and self.backbone is not None:
            raise ValueError(
                f"backbone {self.backbone}: unet has none; choose the network segformer, dinov2-linear or vit"
            )
        if self.network != "unet" and self.width != RecipeSettings.width:
            raise ValueError(f"width {self.width}: is of the network unet; {self.network} takes its size from backbone")
        self._check_text()
        self._check_weak()

    def _check_text(self) -> None:
        takes_text = self.recipe in ("denseclip", "maskclip")
        if takes_text != (self.text_model is not None):
            raise ValueError(
                f"recipe {self.recipe}, text model {self.text_model}: denseclip and maskclip need a text model, and "
                "the other recipes have none"
            )
        if takes_text and self.target != "classes":
            raise ValueError(f"recipe {self.recipe}: learns the classes of a run with names; add --target classes")
        if self.recipe == "denseclip" and self.network != "unet":
            raise ValueError(f"recipe denseclip, network {self.network}: denseclip has a network of its own; drop one")

    def _check_weak(self) -> None:
        if self.recipe in FROM_IMAGES and (self.target, self.network) != ("classes", "vit"):
            raise ValueError(
                f"recipe {self.recipe}: learns classes by the network vit; add --target classes --network vit"
            )
        if self.recipe not in FROM_IMAGES and self.pixel_targets != RecipeSettings.pixel_targets:
            raise ValueError(f"pixel targets {self.pixel_targets}: are of the recipes afa and toco")
        weights = (self.ptc_weight, self.ctc_weight)
        if self.recipe != "toco" and weights != (RecipeSettings.ptc_weight, RecipeSettings.ctc_weight):
            raise ValueError(f"ptc weight {weights[0]}, ctc weight {weights[1]}: are of the recipe toco")
        if min(weights) < 0:
            raise ValueError(f"ptc weight {weights[0]}, ctc weight {weights[1]}: expected at least 0")
