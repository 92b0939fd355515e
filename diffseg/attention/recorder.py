"""Record the attention of a diffusers UNet in one pass, and leave the UNet's output unchanged.

Fused attention returns no probabilities, and the plain form keeps [heads, P, P] of every layer. Here each layer's mean
over heads is added to one sum per resolution, which is all that DiffSeg reads (CVPR 2024, section 3.2). How a layer is
computed and added is the concern of `diffseg.attention.backends`.

Axes: B images in the batch, P token positions of one resolution, L tokens of the prompt, C chosen tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from diffseg.attention.attention_weights import SelfMapProcessor, WeighingProcessor, WeightedMaps
from diffseg.attention.backends import AttentionBackend
from diffseg.attention.blockwise import BlockwiseAttention
from diffseg.attention.layers import AttentionLayer, attention_layers, check_layer
from diffseg.attention.maps import CrossAttention, Grid, SelfAttention
from diffseg.attention.name_context import BesideProcessor, NameContext
from diffseg.attention.processor import PassComplete, RecordingProcessor


def latent_multiple(unet: UNet2DConditionModel) -> int:
    """Return the divisor that both sides of the latents need, so that every resolution has whole tokens."""
    return 2 ** (len(unet.config.block_out_channels) - 1)


class AttentionRecorder:
    """Runs passes of a UNet and records their attention. Its methods take the arguments of the UNet.

    Latents are [B, C, h, w], with h and w multiples of `latent_multiple(unet)`; otherwise a ValueError is raised.
    """

    def __init__(self, unet: UNet2DConditionModel, backend: AttentionBackend | None = None) -> None:
        """Find the layers of a UNet and check them.

        Args:
            unet: A UNet of Stable Diffusion.
            backend: How attention is computed, see `choose_backend`. None uses the blockwise one.

        Raises:
            ValueError: The UNet has no self-attention, or a layer computes something that is not recorded.
        """
        self.unet = unet
        self.backend = BlockwiseAttention() if backend is None else backend
        layers = attention_layers(unet)
        self._self_layers = [layer for layer in layers if not layer.module.is_cross_attention]
        self._all_layers = layers
        if not self._self_layers:
            raise ValueError(
                "this UNet has no self-attention layers: DiffSeg needs the transformer blocks of Stable Diffusion"
            )
        for layer in layers:
            check_layer(layer)

    @torch.inference_mode()
    def self_attention(
        self, latents: torch.Tensor, timestep: Any, encoder_hidden_states: torch.Tensor, **unet_options: Any
    ) -> SelfAttention:
        """Run a pass up to the last self-attention layer, and return self-attention."""
        sums = _Sums(self._self_layers, self.unet, latents)
        self._run(sums, latents, timestep, encoder_hidden_states, unet_options, stop_early=True)
        return sums.self_attention()

    @torch.inference_mode()
    def attention(
        self,
        latents: torch.Tensor,
        timestep: Any,
        encoder_hidden_states: torch.Tensor,
        *,
        columns: torch.Tensor,
        weigh: bool = False,
        **unet_options: Any,
    ) -> tuple[SelfAttention, CrossAttention]:
        """Run a pass up to the last attention layer, and return self-attention and cross-attention to chosen tokens.

        Args:
            latents: See the class.
            timestep: As for the UNet.
            encoder_hidden_states: As for the UNet.
            columns: int64 [B, C] on the UNet's device, positions in each image's prompt of the tokens to return.
            weigh: Whether heads and layers have weights, see `diffseg.attention.attention_weights`.
            unet_options: Further keyword arguments of the UNet.

        Raises:
            ValueError: The UNet reads no text.
        """
        self._check_reads_text()
        sums = _Sums(self._all_layers, self.unet, latents, tokens=encoder_hidden_states.shape[1])
        weighted = WeightedMaps(sums.layers, sums.grids) if weigh else None
        self._run(sums, latents, timestep, encoder_hidden_states, unet_options, weighted=weighted, stop_early=True)
        if weighted is not None:
            return sums.self_attention(), weighted.cross_attention().choose_tokens(columns)
        return sums.self_attention(), sums.cross_attention(columns)

    @torch.inference_mode()
    def attention_beside(
        self,
        latents: torch.Tensor,
        timestep: Any,
        encoder_hidden_states: torch.Tensor,
        *,
        names: NameContext,
        weigh: bool = False,
        **unet_options: Any,
    ) -> tuple[SelfAttention, CrossAttention]:
        """Run a pass up to the last attention layer, and record a second context beside it.

        Args:
            latents: See the class.
            timestep: As for the UNet.
            encoder_hidden_states: As for the UNet.
            names: The second context.
            weigh: Whether heads and layers have weights, see `diffseg.attention.attention_weights`.
            unet_options: Further keyword arguments of the UNet.

        Returns:
            Self-attention, which is that of `self_attention` bit for bit, and the cross-attention of names.

        Raises:
            ValueError: The UNet reads no text.
        """
        self._check_reads_text()
        sums = _Sums(self._all_layers, self.unet, latents, tokens=names.tokens)
        weighted = WeightedMaps(sums.layers, sums.grids) if weigh else None
        self._run(
            *(sums, latents, timestep, encoder_hidden_states, unet_options),
            names=names,
            weighted=weighted,
            stop_early=True,
        )
        cross = sums.all_cross_attention() if weighted is None else weighted.cross_attention()
        return sums.self_attention(), cross.combine_tokens(names.weights)

    def _check_reads_text(self) -> None:
        if len(self._all_layers) == len(self._self_layers):
            raise ValueError("this UNet has no cross-attention layers: it reads no text, and so cannot name anything")

    @torch.inference_mode()
    def with_output(
        self,
        latents: torch.Tensor,
        timestep: Any,
        encoder_hidden_states: torch.Tensor,
        *,
        record_cross: bool = False,
        **unet_options: Any,
    ) -> tuple[SelfAttention, torch.Tensor]:
        """Run a whole pass, and return self-attention and the UNet's output [B, C, h, w], which recording keeps.

        Args:
            latents: See the class.
            timestep: As for the UNet.
            encoder_hidden_states: As for the UNet.
            record_cross: Whether cross-attention layers are recorded too.
            unet_options: Further keyword arguments of the UNet.
        """
        layers = self._all_layers if record_cross else self._self_layers
        sums = _Sums(layers, self.unet, latents, tokens=encoder_hidden_states.shape[1])
        output = self._run(sums, latents, timestep, encoder_hidden_states, unet_options, stop_early=False)
        assert output is not None
        return sums.self_attention(), output

    def _run(
        self,
        sums: _Sums,
        latents: torch.Tensor,
        timestep: Any,
        encoder_hidden_states: torch.Tensor,
        unet_options: Mapping[str, Any],
        *,
        stop_early: bool,
        names: NameContext | None = None,
        weighted: WeightedMaps | None = None,
    ) -> torch.Tensor | None:
        processors: dict[Attention, Any] = {}
        for layer in sums.layers:
            is_last = stop_early and layer is sums.layers[-1]
            own: Any = layer.module.processor
            total = sums.of(layer)
            if not layer.module.is_cross_attention:
                recording = RecordingProcessor(layer.name, self.backend.self_attention, total, is_last=is_last)
                processors[layer.module] = recording if weighted is None else SelfMapProcessor(recording, weighted)
            elif weighted is not None:
                processors[layer.module] = WeighingProcessor(own, layer.name, weighted, names, is_last=is_last)
            elif names is not None:
                processors[layer.module] = BesideProcessor(
                    own, self.backend.record, names, layer.name, total, is_last=is_last
                )
            else:
                processors[layer.module] = RecordingProcessor(
                    layer.name, self.backend.cross_attention, total, is_last=is_last
                )
        try:
            with _replace_processors(processors), _allow_tf32_for_halves(self.unet):
                return self.unet(latents, timestep, encoder_hidden_states=encoder_hidden_states, **unet_options).sample
        except PassComplete:
            return None


class _Sums:
    """The sums of a pass over the layers of each resolution, which the processors add to.

    Attributes:
        layers: The layers that are recorded, in order.
        grids: Height and width in tokens by level.
    """

    def __init__(
        self,
        layers: Sequence[AttentionLayer],
        unet: UNet2DConditionModel,
        latents: torch.Tensor,
        *,
        tokens: int = 0,
    ) -> None:
        """Make sums of zeros, with `tokens` keys for cross-attention."""
        multiple = latent_multiple(unet)
        height, width = latents.shape[-2:]
        if height % multiple or width % multiple:
            raise ValueError(f"latents of {height} x {width}: both sides must be multiples of {multiple}")
        self.layers = layers
        self.grids = {level: (height >> level, width >> level) for level in range(multiple.bit_length())}
        self._sums: dict[tuple[bool, Grid], torch.Tensor] = {}
        self._counts = Counter(self._key(layer) for layer in layers)
        for is_cross, (rows, columns) in self._counts:
            positions = rows * columns
            keys = tokens if is_cross else positions
            self._sums[is_cross, (rows, columns)] = torch.zeros(
                len(latents), positions, keys, dtype=torch.float32, device=latents.device
            )

    def of(self, layer: AttentionLayer) -> torch.Tensor:
        """Return the sum of a layer's kind and resolution, float32 [B, P, P] or [B, P, L]."""
        return self._sums[self._key(layer)]

    def self_attention(self) -> SelfAttention:
        """Return the means over layers, computed in place."""
        counts = self._counts_of(is_cross=False)
        return SelfAttention(
            maps={grid: self._sums[False, grid].div_(count) for grid, count in counts.items()}, layers=counts
        )

    def cross_attention(self, columns: torch.Tensor) -> CrossAttention:
        """Return the means over layers, for the tokens at int64 [B, C]."""
        counts, maps = self._counts_of(is_cross=True), {}
        for grid, count in counts.items():
            total_BPL = self._sums[True, grid]
            chosen_BPC = total_BPL.gather(2, columns[:, None].expand(-1, total_BPL.shape[1], -1))
            maps[grid] = chosen_BPC.transpose(1, 2) / count
        return CrossAttention(maps=maps, layers=counts)

    def all_cross_attention(self) -> CrossAttention:
        """Return the means over layers for all tokens, computed in place."""
        counts = self._counts_of(is_cross=True)
        maps = {grid: self._sums[True, grid].div_(count).transpose(1, 2) for grid, count in counts.items()}
        return CrossAttention(maps=maps, layers=counts)

    def _key(self, layer: AttentionLayer) -> tuple[bool, Grid]:
        return layer.module.is_cross_attention, self.grids[layer.level]

    def _counts_of(self, *, is_cross: bool) -> dict[Grid, int]:
        return {grid: count for (kind, grid), count in self._counts.items() if kind == is_cross}


@contextmanager
def _replace_processors(processors: Mapping[Attention, Any]) -> Iterator[None]:
    """Give attention layers other processors within the block, and restore their own afterwards."""
    before = {layer: layer.processor for layer in processors}
    try:
        for layer, processor in processors.items():
            layer.processor = processor
        yield
    finally:
        for layer, processor in before.items():
            layer.processor = processor


@contextmanager
def _allow_tf32_for_halves(unet: UNet2DConditionModel) -> Iterator[None]:
    """Let tensor cores compute the float32 products of queries and keys that came out of bfloat16 or float16 weights.

    TF32 keeps 10 bits of each factor, and these factors have no more (float16 has 10, bfloat16 has 7), so the products
    are as exact as without it; sums are float32 either way. Models in float32 keep the setting as it is.
    """
    setting = torch.backends.cuda.matmul
    before = setting.allow_tf32
    if unet.dtype in (torch.bfloat16, torch.float16):
        setting.allow_tf32 = True
    try:
        yield
    finally:
        setting.allow_tf32 = before
