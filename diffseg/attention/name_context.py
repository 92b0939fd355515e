"""A second context beside a pass: names that every position attends to, without any effect on the image.

At each cross-attention layer the queries of the pass also meet the keys of the second context. The attention is
recorded, and there are no values that it could be multiplied by. Self-attention, and with it the masks, are therefore
those of a pass without names. FA-Seg and Dataset Diffusion record names in this way.

The probabilities of a position sum to 1 over all tokens of the second context: the two tokens of an empty prompt, and
the tokens of all names. So all names compete with each other, however many there are.

Axes: B images in the batch, H heads, P positions, K tokens of the second context, T names, D channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention

from diffseg.attention.processor import PassComplete, split_heads

Record = Callable[[torch.Tensor, torch.Tensor, float, torch.Tensor], None]
"""The method `record` of an `AttentionBackend`."""

EXCLUDED = -3e4
"""What an excluded token adds to its products of queries and keys: its probability is 0, and float16 can hold it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NameContext:
    """The second context of a batch.

    Attributes:
        keys: By the name of each cross-attention layer, its keys [B or 1, K, H·D] in the dtype of the weights.
        weights: float32 [B or 1, T, K], the weight of each token in each name.
        is_padding: bool [B, K], tokens that an image lacks; None if the images have equally many tokens.
    """

    keys: Mapping[str, torch.Tensor]
    weights: torch.Tensor
    is_padding: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """K, the number of tokens, including padding."""
        return self.weights.shape[2]


class BesideProcessor:
    """Records the attention to a second context, and leaves the layer itself to the processor that it has."""

    def __init__(
        self, processor: Any, record: Record, context: NameContext, layer: str, total: torch.Tensor, *, is_last: bool
    ) -> None:
        """Prepare one pass.

        Args:
            processor: The layer's own processor.
            record: How attention is recorded.
            context: The second context.
            layer: Name of the layer.
            total: float32 [B, P, K], the sum of maps to which this layer's is added.
            is_last: Whether the pass ends once this layer has been recorded.
        """
        self.processor = processor
        self.record = record
        self.keys = context.keys[layer]
        self.is_padding = context.is_padding
        self.total = total
        self.is_last = is_last

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        """Record the layer and run it. Raises PassComplete if it was the last layer that is needed."""
        projected = attn.to_q(hidden_states)
        queries = split_heads(projected, attn.heads)
        keys = split_heads(self.keys, attn.heads).expand(len(queries), -1, -1, -1)
        if self.is_padding is not None:
            queries, keys = exclude_tokens(queries, keys, self.is_padding)
        self.record(queries, keys, attn.scale, self.total)
        if self.is_last:
            raise PassComplete
        # A compiler finds by itself that the same projection is computed twice.
        layer: Any = attn if torch.compiler.is_compiling() else LayerWithQueries(attn, projected)
        return self.processor(layer, hidden_states, *arguments, **options)


class LayerWithQueries:
    """An attention layer whose queries are known already, as its own processor sees it."""

    def __init__(self, attn: Attention, queries: torch.Tensor) -> None:
        self._attn, self._queries = attn, queries

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attn, name)

    def to_q(self, *_: Any) -> torch.Tensor:
        return self._queries


def exclude_tokens(
    queries_BHPD: torch.Tensor, keys_BHKD: torch.Tensor, is_excluded: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return queries and keys with one channel more, which gives excluded tokens the probability 0.

    Attention kernels that return the log-sum-exp take no mask for single keys.

    Args:
        queries_BHPD: Queries.
        keys_BHKD: Keys.
        is_excluded: bool [B, K].
    """
    offsets = torch.where(is_excluded, EXCLUDED, 0.0).to(keys_BHKD.dtype)[:, None, :, None]
    keys = torch.cat([keys_BHKD, offsets.expand(-1, keys_BHKD.shape[1], -1, -1)], dim=-1)
    return torch.nn.functional.pad(queries_BHPD, (0, 1), value=1.0), keys
