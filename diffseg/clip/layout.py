"""What is read of a CLIP, whichever library and architecture it has.

An image encoder ends in a layer that mixes positions to one vector for the image: the attention of the last block
(CLIP), attention pooling (SigLIP) or a mean (MobileCLIP). If nothing is mixed there, each position keeps a vector of
its own, which still lies in the space that images share with texts (MaskCLIP; Zhou, Loy and Dai, ECCV 2022). If another
model says which positions belong together, its attention can mix the values instead (ProxyCLIP; Lan et al., ECCV 2024).

Axes: B images, S pixels per side, N = h·w positions of the image encoder, V features of a value, D dimensions of the
shared space, T texts, L tokens of a text, W features of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffseg.model.layout import CheckpointError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Colour statistics, 0 to 1, of the training images of OpenAI's models; a checkpoint may have others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipLayout:
    """The parts of a CLIP that score names at positions of an image.

    Attributes:
        model: The network, of transformers or open_clip, on the device where the functions run.
        mean: float32 [3, 1, 1], mean of colours, 0 to 1.
        std: float32 [3, 1, 1], standard deviation of colours.
        patch: Pixels per side of a position.
        image_size: Side of the training images in pixels.
        dense: From normalised pixels, float32 [B, 3, S, S], to a vector for each position, float32 [B, N, D], without
            any mixing of positions in the last layer that mixes them.
        values: From normalised pixels to what that layer mixes, float32 [B, N, V].
        project: From mixtures of values, float32 [B, P, V], whose weights sum to 1, to vectors, float32 [B, P, D].
        tokenize: From texts to the ids of their tokens, int64 [T, L], on the CPU.
        encode_tokens: From ids to the vectors of the texts, float32 [T, D].
        token_embedding: From ids to what the text encoder reads, [T, L, W]. None if the encoder has no such module.
        scale: Factor of similarities.
        bias: Added to scaled similarities whose sigmoid is the probability of a text. None if the probabilities of all
            texts together are a softmax.
    """

    model: Any
    mean: torch.Tensor
    std: torch.Tensor
    patch: int
    image_size: int
    dense: Callable[[torch.Tensor], torch.Tensor]
    values: Callable[[torch.Tensor], torch.Tensor]
    project: Callable[[torch.Tensor], torch.Tensor]
    tokenize: Callable[[Sequence[str]], torch.Tensor]
    encode_tokens: Callable[[torch.Tensor], torch.Tensor]
    token_embedding: Any
    scale: torch.Tensor
    bias: torch.Tensor | None = None

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the vectors of texts, float32 [T, D]."""
        return self.encode_tokens(self.tokenize(texts).to(self.mean.device))


def colour_statistics(
    path: Path, mean: Any, std: Any, names: tuple[str, str], device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the standard deviation of colours, float32 [3, 1, 1] each.

    Args:
        path: The file that holds the values.
        mean: Its mean of each colour, 0 to 1.
        std: Its standard deviation of each colour.
        names: Names of the two in the file.
        device: Torch device.

    Raises:
        CheckpointError: The values are not three numbers each, or a standard deviation is not above 0.
    """
    statistics = []
    for name, values in zip(names, (mean, std), strict=True):
        try:
            statistics.append(torch.tensor([float(value) for value in values]).reshape(3, 1, 1))
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: {name} is {values}; expected a number for each of three colours") from error
    if not (torch.isfinite(torch.stack(statistics)).all() and (statistics[1] > 0).all()):
        raise CheckpointError(
            f"{path}: {names[0]} is {mean} and {names[1]} is {std}; expected numbers, and {names[1]} above 0"
        )
    return statistics[0].to(device), statistics[1].to(device)
