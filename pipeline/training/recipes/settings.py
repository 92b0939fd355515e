"""The settings that a recipe reads. They import no torch, because the command line is made from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Target = Literal["segments", "classes"]
NetworkName = Literal["unet", "segformer", "dinov2-linear"]
RecipeName = Literal["plain", "denseclip", "maskclip"]

IGNORE_INDEX = -100
"""Label of ignored pixels; the default `ignore_index` of PyTorch's losses."""


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """What is learned, by which network, and how; `pipeline.training.settings.TrainSettings` adds the samples."""

    target: Target = "segments"
    """What the network learns. segments: whether pixels belong together, which needs no names. classes: the class of
    each pixel, which needs a run with names."""
    recipe: RecipeName = "plain"
    """How it learns. plain: from the pixels of the label maps. denseclip: like plain, by a network of its own that reads
    how well each position fits the names (DenseCLIP). maskclip: like plain, with the vectors of the names as a
    classifier that is not trained (MaskCLIP+). The last two need --text-model and can label with other names."""
    text_model: str | None = None
    """Whose text encoder, which is not trained, turns names into vectors for denseclip and maskclip: a folder or hub id
    of a CLIP or SigLIP, whose image encoder denseclip trains further, or of a Stable Diffusion checkpoint, or
    tiny-text. It must stay there as long as the network is used."""
    network: NetworkName = "unet"
    """unet: a small U-Net of this program. segformer: SegFormer. dinov2-linear: a linear layer on the tokens of DINOv2
    or of a plain ViT. The last two come from transformers."""
    backbone: str | None = None
    """What segformer and dinov2-linear start from: a folder or hub id with config.json and safetensors, such as
    facebook/dinov2-small, or the path of a config.json, whose weights are drawn at random. Of dinov2-linear with given
    weights only the linear layer is trained. Default: SegFormer-B0 or a ViT-S/14 with random weights."""
    steps: int = 2000
    """Number of optimiser steps; all workers make each step together."""
    size: int = 256
    """Side of the square crops in pixels, a multiple of 32."""
    learning_rate: float = 3e-3
    """Highest learning rate, reached after the first twentieth of the steps; it then falls along half a cosine. A
    pretrained segformer needs a lower one, such as 0.0002."""
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
            raise ValueError(f"backbone {self.backbone}: unet has none; choose the network segformer or dinov2-linear")
        if self.network != "unet" and self.width != RecipeSettings.width:
            raise ValueError(f"width {self.width}: is of the network unet; {self.network} takes its size from backbone")
        self._check_text()

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
