"""What the embedded UNet is trained on: denoising, and attention rows that stay inside their own region.

DiffSeg reads an attention row as a distribution over positions and merges rows that look alike; a row is right when
it is uniform over its region. The second loss says exactly that, for a few sampled queries per image, on the same
aggregate that DiffSeg forms.

Axes: B batch, S sampled queries, P positions of the working grid (w·w), p positions of a layer's own grid, H heads,
T tokens of a caption, C classes.
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
    """Attention processor for every layer of a UNet; keeps the attention rows of sampled queries, with gradient.

    Only S of P rows are formed outside the fused attention, which is what makes the loss affordable on a CPU.

    Attributes:
        queries: int64 [B, S], positions of the working grid; None records nothing.
        side: w, side of the working grid.
        rows: per grid side, the head-averaged self-attention rows of each layer, float32 [B, S, p].
        words: per grid side, those of cross-attention, float32 [B, S, T], where there is more than one token.
    """

    queries: Tensor | None = field(default=None, repr=False)
    side: int = 0
    rows: dict[int, list[Tensor]] = field(default_factory=dict, repr=False)
    words: dict[int, list[Tensor]] = field(default_factory=dict, repr=False)

    def attach(self, unet: UNet2DConditionModel) -> RowRecorder:
        unet.set_attn_processor(self)
        return self

    def start(self, queries: Tensor | None, side: int) -> None:
        self.queries, self.side = queries, side
        self.rows, self.words = {}, {}

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        if self.queries is not None and encoder_hidden_states is None:
            self._record(self.rows, query, key)
        elif self.queries is not None and context.shape[1] > 1:
            self._record(self.words, query, key)
        out = F.scaled_dot_product_attention(query, key, value)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))

    def _record(self, into: dict[int, list[Tensor]], query_BHpd: Tensor, key_BHkd: Tensor) -> None:
        assert self.queries is not None
        heads, positions, width = query_BHpd.shape[1:]
        side = math.isqrt(positions)
        # A coarse grid's row stands for every query under its cell (nearest repetition, as DiffSeg repeats queries).
        y, x = self.queries // self.side, self.queries % self.side
        index = (y * side // self.side) * side + x * side // self.side
        picked = query_BHpd.gather(2, index[:, None, :, None].expand(-1, heads, -1, width))
        rows = (picked @ key_BHkd.transpose(2, 3) / math.sqrt(width)).softmax(-1).mean(1)
        into.setdefault(side, []).append(rows)

    def aggregate(self) -> Tensor:
        """DiffSeg's aggregate of the recorded rows, float32 [B, S, P], each row summing to 1.

        Each map weighs in proportion to its resolution (section 3.2.1 of the paper).
        """
        total = sum(len(rows) * side for side, rows in self.rows.items())
        parts = []
        for side, rows in self.rows.items():
            grid = torch.stack(rows).mean(0).unflatten(-1, (side, side))
            full = F.interpolate(grid, (self.side, self.side), mode="bilinear", align_corners=False).flatten(2)
            parts.append(full / full.sum(-1, keepdim=True) * (side * len(rows) / total))
        return sum(parts[1:], parts[0])


def region_targets(labels_BYX: Tensor, queries_BS: Tensor, side: int) -> Tensor:
    """The uniform distribution over each query's own region, float32 [B, S, P].

    Args:
        labels_BYX: integer [B, 2w, 2w], labels at twice the working grid: a position on a border belongs to two regions
            by parts, and so gets parts of the mass.
        queries_BS: int64 [B, S], positions of the working grid.
        side: w.
    """
    y, x = queries_BS // side, queries_BS % side
    own = labels_BYX.flatten(1).gather(1, 2 * y * 2 * side + 2 * x)
    inside = (labels_BYX[:, None] == own[:, :, None, None]).float()
    target = F.avg_pool2d(inside, 2).flatten(2)
    return target / target.sum(-1, keepdim=True)


def attention_loss(recorder: RowRecorder, target_BSP: Tensor, *, per_resolution: float = 0.3) -> Tensor:
    """KL divergence of the aggregated rows from their regions: float32 [B], nats, 0 is perfect.

    Args:
        recorder: after a forward pass of the UNet.
        target_BSP: from `region_targets`.
        per_resolution: weight of the mean of the same loss on each resolution alone.
    """
    side = recorder.side
    grid = target_BSP.unflatten(-1, (side, side))
    alone = [
        _divergence(F.avg_pool2d(grid, side // s).flatten(2) * (side // s) ** 2, torch.stack(rows).mean(0))
        for s, rows in recorder.rows.items()
    ]
    return _divergence(target_BSP, recorder.aggregate()) + per_resolution * torch.stack(alone).mean(0)


def _divergence(target: Tensor, rows: Tensor) -> Tensor:
    return (torch.special.xlogy(target, target) - target * rows.clamp_min(1e-8).log()).sum(-1).mean(-1)


def class_targets(classes_BYX: Tensor, named_BC: Tensor, queries_BS: Tensor, side: int) -> Tensor:
    """What a query should look at in its caption, float32 [B, S, C + 1]: shares of the classes named, and of the rest.

    Args:
        classes_BYX: int64 [B, 2w, 2w], classes 0..C-1 at twice the working grid.
        named_BC: bool [B, C], whether the caption names a class; what it does not name counts with the rest.
        queries_BS: int64 [B, S], positions of the working grid.
        side: w.
    """
    shares = F.avg_pool2d(F.one_hot(classes_BYX, named_BC.shape[1]).permute(0, 3, 1, 2).float(), 2).flatten(2)
    own = shares.gather(2, queries_BS[:, None].expand(-1, shares.shape[1], -1)).transpose(1, 2) * named_BC[:, None]
    return torch.cat([own, 1 - own.sum(-1, keepdim=True)], -1)


def naming_loss(recorder: RowRecorder, token_classes_BT: Tensor, target_BSC: Tensor) -> Tensor:
    """KL divergence of the tokens' shares of cross-attention from the classes that show: float32 [B], nats.

    A noun's share is the sum over its tokens; all tokens that are of no noun (start, end, "and", commas) are the rest.
    Shares are averaged over the layers of all resolutions but the coarsest; single resolutions count .3 beside that.

    Args:
        recorder: after a forward pass of the UNet over B images or more, of which the first B count.
        token_classes_BT: int64 [B, T], the class that each token names, −1 where it names none.
        target_BSC: from `class_targets`.
    """
    batch, classes = len(token_classes_BT), target_BSC.shape[-1] - 1
    shares_of = F.one_hot(token_classes_BT.where(token_classes_BT >= 0, classes), classes + 1).float()
    sides = sorted(recorder.words)[1:]
    means = [torch.stack(recorder.words[side])[:, :batch].mean(0) @ shares_of for side in sides]
    counts = [len(recorder.words[side]) for side in sides]
    parts = [mean * (count / sum(counts)) for mean, count in zip(means, counts, strict=True)]
    alone = torch.stack([_divergence(target_BSC, mean) for mean in means]).mean(0)
    return _divergence(target_BSC, sum(parts[1:], parts[0])) + 0.3 * alone
