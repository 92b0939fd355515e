"""Classes that are vectors of their names, so that a network may predict names that it was not trained on.

Axes: B images, K classes with the background first, D dimensions of the shared space, M learnable tokens, W features of
a token, h and w height and width of the network's output, S side of the square input in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffseg.clip.text_model import TextModel

TAU = 0.07
"""Temperature of similarities: the one with which CLIP's training starts (Radford et al., 2021, section 2.5), and that
of DenseCLIP's auxiliary loss."""


class TextClasses(nn.Module):
    """A vector for each class: the text encoder's for a name, and a learned one for the background.

    The background stands for everything that has no name. The weights of the frozen text encoder are not part of this
    module: they stay in the files that the user named.

    Args:
        text: The frozen text encoder.
        names: K − 1 names.
        context: M, learnable tokens before each name; 0 for constant vectors of the names.
        project: Whether a trained linear layer maps the text encoder's vectors to the shared space.
    """

    vectors: Tensor

    def __init__(self, text: TextModel, names: Sequence[str], *, context: int = 0, project: bool = False) -> None:
        super().__init__()
        self._text, self.names = text, tuple(names)
        self.context = nn.Parameter(torch.randn(context, text.width) * 0.02) if context else None
        self.dimensions = len(self._of_names()[0])
        self.projection = nn.Linear(self.dimensions, self.dimensions, bias=False) if project else None
        self.background = nn.Parameter(F.normalize(torch.randn(self.dimensions), dim=0))
        self.register_buffer("vectors", torch.empty(0), persistent=False)
        self.use_names(self.names)

    @torch.no_grad()
    def use_names(self, names: Sequence[str]) -> None:
        """Take other names, and compute their vectors from the weights as they are now."""
        self.names = tuple(names)
        self.vectors = self._of_names().to(self.background)

    def train(self, mode: bool = True) -> TextClasses:
        """Set training or evaluation mode; evaluation takes the vectors of the names from the present weights."""
        super().train(mode)
        if not mode:
            self.use_names(self.names)
        return self

    def forward(self) -> Tensor:
        """Return vectors of length 1, float32 [K, D], with the gradient with respect to everything that is trained."""
        # In evaluation mode or without learnable tokens, the vectors of the names are constant.
        names = self._of_names() if self.training and self.context is not None else self.vectors
        names = F.normalize(names, dim=1)
        if self.projection is not None:
            names = F.normalize(self.projection(names), dim=1)
        return torch.cat([F.normalize(self.background, dim=0)[None], names])

    def _of_names(self) -> Tensor:
        """Return the vectors of the text encoder, float32 [K − 1, D]."""
        if self.context is None:
            clip = self._text.clip  # its vectors are means over sentences, which are better than bare names
            return self._text.vectors(self.names) if clip is None else clip.name_vectors(self.names).clone()
        self._text.model.to(self.context.device)
        return self._text.vectors(self.names, self.context)


def similarities(vectors: Tensor, classes: Tensor) -> Tensor:
    """Return the cosine of each position with each class.

    Args:
        vectors: [B, D, h, w], of any length.
        classes: Vectors of length 1, [K, D], or those of each image, [B, K, D].

    Returns:
        [B, K, h, w], −1 to 1: the score map s of DenseCLIP (Rao et al., CVPR 2022, section 3.2).
    """
    unit = F.normalize(vectors, dim=1)
    if classes.ndim == 2:
        return F.conv2d(unit, classes[:, :, None, None])
    return torch.einsum("bkd,bdhw->bkhw", classes, unit)


class TextClassifier(nn.Module):
    """A network whose classifier is the vectors of the names, which are not trained (MaskCLIP+; Zhou et al., 2022).

    It maps float32 [B, 3, S, S] in [−1, 1] to scores [B, K, h, w].

    Args:
        network: Maps images to vectors, [B, D, h, w].
        classes: The classes. Only the vector of the background is trained, as in the code of MaskCLIP+.
    """

    def __init__(self, network: nn.Module, classes: TextClasses) -> None:
        super().__init__()
        self.network, self.classes = network, classes

    def forward(self, images: Tensor) -> Tensor:
        """Return cosines of the network's vectors with the classes, divided by the temperature."""
        return similarities(self.network(images), self.classes()) / TAU


def text_classes(network: nn.Module) -> TextClasses | None:
    """Return the classes of a network that were made from names, or None if it has none."""
    classes: Any = getattr(network, "classes", None)
    return classes if isinstance(classes, TextClasses) else None
