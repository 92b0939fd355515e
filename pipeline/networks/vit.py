"""A plain vision transformer below a small decoder, with the inner outputs that weak supervision learns from.

It is defined here because the recipes need the tokens of an early block and the attention of the last ones, and because
weights come in the layouts of two libraries. The names of the weights are those of timm.

Axes: B images, S side of the square input in pixels, D channels of a token, h and w tokens, N = h w, H heads,
C outputs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DECODER_CHANNELS = 512
"""Largest number of channels inside the decoder; smaller transformers have as many there as in a token."""

DILATION = 5
"""Distance of the decoder's 3 x 3 taps, in tokens."""

MOST_BLOCKS = 1000
"""Largest number of blocks in a configuration that is accepted."""


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The shape of a plain vision transformer, and how its images are normalised."""

    patch: int = 16
    """Side of a patch in pixels."""
    channels: int = 384
    """D."""
    blocks: int = 12
    """Number of blocks."""
    heads: int = 6
    """Attention heads of a block."""
    hidden: int = 1536
    """Channels inside the MLP of a block."""
    grid: int = 14
    """Side of the square of position embeddings; they are interpolated for other numbers of tokens."""
    epsilon: float = 1e-6
    """Epsilon of the layer norms."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Mean of each colour of the images, 0 to 1."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Standard deviation of each colour."""

    def __post_init__(self) -> None:
        sizes = (self.patch, self.channels, self.blocks, self.heads, self.hidden, self.grid)
        if not all(isinstance(size, int) and size > 0 for size in sizes) or self.blocks > MOST_BLOCKS:
            raise ValueError(f"sizes {sizes}: expected integers from 1, and at most {MOST_BLOCKS} blocks")
        if self.channels % self.heads:
            raise ValueError(f"{self.channels} channels: expected a multiple of the {self.heads} heads")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean}, std {self.std}: expected three numbers each, the deviations above 0")

    def plain(self) -> dict[str, Any]:
        """Return the fields as config.json holds them."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}


class Tokens(NamedTuple):
    """The outputs of the transformer for images.

    Attributes:
        image: The class token after the last block and norm, [B, D].
        early: Tokens after the third block from the end, without a norm, [B, D, h, w]. ToCo's auxiliary classifier
            reads them.
        final: Tokens after the last block and norm, [B, D, h, w].
        attention: Scores of the heads of the last two blocks between tokens, before the softmax, [B, 2 H, N, N]; None
            unless asked for.
    """

    image: Tensor
    early: Tensor
    final: Tensor
    attention: Tensor | None


class Attention(nn.Module):
    """Self-attention of all tokens."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.channels, 3 * config.channels)
        self.proj = nn.Linear(config.channels, config.channels)

    def forward(self, x: Tensor, *, with_scores: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return the output, and the scores [B, H, N + 1, N + 1] before the softmax if asked for."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if with_scores:
            scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
            mixed = scores.softmax(dim=-1) @ value
        else:
            scores, mixed = None, F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2)), scores


class Block(nn.Module):
    """Attention and an MLP, each behind a layer norm and beside a residual connection."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.channels, config.epsilon)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.channels, config.epsilon)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(config.channels, config.hidden), "fc2": nn.Linear(config.hidden, config.channels)}
        )

    def forward(self, x: Tensor, *, with_scores: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return the tokens after the block, and the attention's scores if asked for."""
        mixed, scores = self.attn(self.norm1(x), with_scores=with_scores)
        x = x + mixed
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))), scores


class PlainViT(nn.Module):
    """A plain vision transformer (Dosovitskiy et al., ICLR 2021) with a class token and learned positions."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, config.channels, config.patch, stride=config.patch)})
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.channels))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.grid**2, config.channels))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.channels, config.epsilon)
        for weight in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(weight, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, *, with_attention: bool = False) -> Tokens:
        """Return the tokens of images, float32 [B, 3, S, S] in [−1, 1], resized to the nearest multiple of a patch."""
        side = self.config.patch
        rows, columns = (max(1, round(int(length) / side)) for length in images.shape[-2:])
        if (rows * side, columns * side) != tuple(images.shape[-2:]):
            images = F.interpolate(images, (rows * side, columns * side), mode="bilinear")
        x = self.patch_embed["proj"](self._normalised(images)).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self._positions(rows, columns)
        early, scores = x, []
        for number, block in enumerate(self.blocks):
            x, block_scores = block(x, with_scores=with_attention and number >= len(self.blocks) - 2)
            if block_scores is not None:
                scores.append(block_scores[:, :, 1:, 1:])
            if number == max(0, len(self.blocks) - 3):
                early = x
        x = self.norm(x)
        early, final = (tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, columns)) for tokens in (early, x))
        return Tokens(x[:, 0], early, final, torch.cat(scores, dim=1) if scores else None)

    def _normalised(self, images: Tensor) -> Tensor:
        """Normalise images in [−1, 1] by the colours of the configuration."""
        if set(self.config.mean) == set(self.config.std) == {0.5}:
            return images
        mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (self.config.mean, self.config.std))
        return (images / 2 + 0.5 - mean) / std

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the position embeddings of a class token and a grid of tokens, [1, 1 + N, D]."""
        grid = self.config.grid
        if (rows, columns) == (grid, grid):
            return self.pos_embed
        square = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
        resized = F.interpolate(square, (rows, columns), mode="bicubic").flatten(2).transpose(1, 2)
        return torch.cat([self.pos_embed[:, :1], resized], dim=1)


class ViTSegmenter(nn.Module):
    """A plain ViT and ToCo's decoder: float32 [B, 3, S, S] in [−1, 1] to [B, C, h, w].

    The decoder (LargeFOV) is two dilated 3 x 3 convolutions and a 1 x 1 convolution.

    Args:
        config: Shape of the transformer.
        dimensions: C.
    """

    def __init__(self, config: ViTConfig, dimensions: int) -> None:
        super().__init__()
        self.encoder = PlainViT(config)
        width = min(config.channels, DECODER_CHANNELS)
        taps = {"padding": DILATION, "dilation": DILATION, "bias": False}
        self.decoder = nn.Sequential(
            nn.Conv2d(config.channels, width, 3, **taps),  # type: ignore[arg-type]
            nn.ReLU(),
            nn.Conv2d(width, width, 3, **taps),  # type: ignore[arg-type]
            nn.ReLU(),
            nn.Conv2d(width, dimensions, 1, bias=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores, or the embedding, of images."""
        return self.decoder(self.encoder(images).final)
