"""The attention losses of the embedded UNets, which are trained with them beside the denoising loss.

DiffSeg reads an attention row as a distribution over positions and merges similar rows, so the best row is uniform over
the region of its query. The attention loss is the divergence from that row, for a few sampled queries per image, on the
same aggregate of resolutions that DiffSeg forms. The naming loss is its counterpart for cross-attention.

Axes: B batch, S sampled queries, P positions of the working grid (w·w), p positions of a layer's grid, k keys of a
layer, H heads, d channels of a head, T tokens of a caption, C classes, Y and X rows and columns of labels (2w each).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F

__all__ = ["RowRecorder", "attention_loss", "class_targets", "naming_loss", "region_targets"]


@dataclass
class RowRecorder:
    """Attention processor for all layers of a UNet that records the attention rows of sampled queries, with gradient.

    Only S of P rows are computed outside the fused attention, which makes the loss affordable on a CPU.

    Attributes:
        queries: Positions on the working grid, int64 [B, S]; None records nothing.
        side: Side w of the working grid.
        rows: For each grid side, the self-attention rows of its layers, averaged over heads, float32 [B, S, p].
        token_rows: For each grid side, the cross-attention rows of its layers, averaged over heads, float32 [B, S, T];
            recorded only if there is more than one token.
    """

    queries: Tensor | None = field(default=None, repr=False)
    side: int = 0
    rows: dict[int, list[Tensor]] = field(default_factory=dict, repr=False)
    token_rows: dict[int, list[Tensor]] = field(default_factory=dict, repr=False)

    def attach(self, unet: UNet2DConditionModel) -> RowRecorder:
        """Make this recorder the processor of all attention layers of `unet`, and return it."""
        unet.set_attn_processor(self)
        return self

    def start(self, queries: Tensor | None, side: int) -> None:
        """Discard the recorded rows, and record those of `queries` from now on."""
        self.queries, self.side = queries, side
        self.rows, self.token_rows = {}, {}

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        """Return the output of an attention layer, and record the rows of the queries."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        if self.queries is not None and encoder_hidden_states is None:
            self._record(self.rows, query, key)
        elif self.queries is not None and context.shape[1] > 1:
            self._record(self.token_rows, query, key)
        out = F.scaled_dot_product_attention(query, key, value)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))

    def _record(self, rows_by_side: dict[int, list[Tensor]], query_BHpd: Tensor, key_BHkd: Tensor) -> None:
        """Append the rows of the sampled queries in one layer, averaged over heads."""
        assert self.queries is not None
        heads, positions, width = query_BHpd.shape[1:]
        side = math.isqrt(positions)
        # A row of a coarse grid represents all queries in its cell, as DiffSeg repeats the queries of coarse grids.
        y, x = self.queries // self.side, self.queries % self.side
        index = (y * side // self.side) * side + x * side // self.side
        sampled = query_BHpd.gather(2, index[:, None, :, None].expand(-1, heads, -1, width))
        rows = (sampled @ key_BHkd.transpose(2, 3) / math.sqrt(width)).softmax(-1).mean(1)
        rows_by_side.setdefault(side, []).append(rows)

    def aggregate(self) -> Tensor:
        """Return DiffSeg's aggregate of the recorded self-attention rows, float32 [B, S, P]; each row sums to 1.

        The weight of each map is proportional to its resolution (section 3.2.1 of the paper).
        """
        total = sum(len(rows) * side for side, rows in self.rows.items())
        parts = []
        for side, rows in self.rows.items():
            grid = torch.stack(rows).mean(0).unflatten(-1, (side, side))
            full = F.interpolate(grid, (self.side, self.side), mode="bilinear", align_corners=False).flatten(2)
            parts.append(full / full.sum(-1, keepdim=True) * (side * len(rows) / total))
        return sum(parts[1:], parts[0])


def region_targets(labels_BYX: Tensor, queries_BS: Tensor, side: int) -> Tensor:
    """Return the uniform distribution over the region of each query.

    Args:
        labels_BYX: Labels at twice the resolution of the working grid, integer [B, 2w, 2w], so that a position on a
            border belongs to each of its regions in part and gets that part of the mass.
        queries_BS: Positions on the working grid, int64 [B, S].
        side: Side w of the working grid.

    Returns:
        float32 [B, S, P]; each row sums to 1.
    """
    y, x = queries_BS // side, queries_BS % side
    labels_BS = labels_BYX.flatten(1).gather(1, 2 * y * 2 * side + 2 * x)
    inside = (labels_BYX[:, None] == labels_BS[:, :, None, None]).float()
    target = F.avg_pool2d(inside, 2).flatten(2)
    return target / target.sum(-1, keepdim=True)


def attention_loss(recorder: RowRecorder, target_BSP: Tensor, *, per_resolution: float = 0.3) -> Tensor:
    """Return the KL divergence of the targets from the aggregated rows.

    Args:
        recorder: Recorder after a forward pass of the UNet.
        target_BSP: Targets from `region_targets`.
        per_resolution: Weight of the same loss on single resolutions, averaged over them.

    Returns:
        float32 [B] in nats; 0 is a perfect match.
    """
    side = recorder.side
    grid = target_BSP.unflatten(-1, (side, side))
    single = [
        _divergence(F.avg_pool2d(grid, side // s).flatten(2) * (side // s) ** 2, torch.stack(rows).mean(0))
        for s, rows in recorder.rows.items()
    ]
    return _divergence(target_BSP, recorder.aggregate()) + per_resolution * torch.stack(single).mean(0)


def _divergence(target: Tensor, rows: Tensor) -> Tensor:
    """Return the KL divergence of `target` from `rows`, both [B, S, …], averaged over queries; float32 [B]."""
    return (torch.special.xlogy(target, target) - target * rows.clamp_min(1e-8).log()).sum(-1).mean(-1)


def class_targets(classes_BYX: Tensor, named_BC: Tensor, queries_BS: Tensor, side: int) -> Tensor:
    """Return how the cross-attention of each query should be distributed over the classes that its caption names.

    Args:
        classes_BYX: Classes 0..C-1 at twice the resolution of the working grid, int64 [B, 2w, 2w].
        named_BC: Whether the caption names a class, bool [B, C]; all other classes count as background.
        queries_BS: Positions on the working grid, int64 [B, S].
        side: Side w of the working grid.

    Returns:
        float32 [B, S, C + 1]: the share of each named class at the query's position, then that of the background.
    """
    shares = F.avg_pool2d(F.one_hot(classes_BYX, named_BC.shape[1]).permute(0, 3, 1, 2).float(), 2).flatten(2)
    named = shares.gather(2, queries_BS[:, None].expand(-1, shares.shape[1], -1)).transpose(1, 2) * named_BC[:, None]
    return torch.cat([named, 1 - named.sum(-1, keepdim=True)], -1)


def naming_loss(recorder: RowRecorder, token_classes_BT: Tensor, target_BSC: Tensor) -> Tensor:
    """Return the KL divergence of the targets from the distribution of cross-attention over the named classes.

    The attention to a noun is the sum over its tokens. All other tokens (start, end, "and", commas) count as
    background. Attention is averaged over the layers of all resolutions except the coarsest. The same loss on single
    resolutions, averaged over them, is added with weight 0.3.

    Args:
        recorder: Recorder after a forward pass of the UNet over at least B images, of which the first B are scored.
        token_classes_BT: Class that each token names, int64 [B, T], −1 for none.
        target_BSC: Targets from `class_targets`, [B, S, C + 1].

    Returns:
        float32 [B] in nats; 0 is a perfect match.
    """
    batch, classes = len(token_classes_BT), target_BSC.shape[-1] - 1
    class_of_token = F.one_hot(token_classes_BT.where(token_classes_BT >= 0, classes), classes + 1).float()
    sides = sorted(recorder.token_rows)[1:]
    means = [torch.stack(recorder.token_rows[side])[:, :batch].mean(0) @ class_of_token for side in sides]
    counts = [len(recorder.token_rows[side]) for side in sides]
    parts = [mean * (count / sum(counts)) for mean, count in zip(means, counts, strict=True)]
    single = torch.stack([_divergence(target_BSC, mean) for mean in means]).mean(0)
    return _divergence(target_BSC, sum(parts[1:], parts[0])) + 0.3 * single
