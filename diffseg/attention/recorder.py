"""Record the attention of a diffusers UNet in one pass, and leave the UNet's output unchanged.

Fused attention returns no probabilities, and the plain form keeps [heads, P, P] of every layer. Here each layer's mean
over heads is added to one sum per resolution, which is all that DiffSeg reads (CVPR 2024, section 3.2). How a layer is
computed and added is the concern of `diffseg.attention.backends`.

Axes: B images in the batch, P token positions of one resolution, L tokens of the prompt, C chosen tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from diffseg.attention.attention_weights import SelfMapProcessor, WeighingProcessor, WeightedMaps
from diffseg.attention.backends import AttentionBackend
from diffseg.attention.blockwise import BlockwiseAttention
from diffseg.attention.layers import attention_layers, check_layer
from diffseg.attention.maps import CrossAttention, SelfAttention
from diffseg.attention.name_context import BesideProcessor, NameContext
from diffseg.attention.processor import PassComplete, RecordingProcessor, replace_processors
from diffseg.attention.sums import AttentionSums


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
        sums = AttentionSums(self._self_layers, self.unet, latents)
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
        sums = AttentionSums(self._all_layers, self.unet, latents, tokens=encoder_hidden_states.shape[1])
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
        sums = AttentionSums(self._all_layers, self.unet, latents, tokens=names.tokens)
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
        sums = AttentionSums(layers, self.unet, latents, tokens=encoder_hidden_states.shape[1])
        output = self._run(sums, latents, timestep, encoder_hidden_states, unet_options, stop_early=False)
        assert output is not None
        return sums.self_attention(), output

    def _run(
        self,
        sums: AttentionSums,
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
            with replace_processors(self.unet, processors):
                return self.unet(latents, timestep, encoder_hidden_states=encoder_hidden_states, **unet_options).sample
        except PassComplete:
            return None
