"""Record the attention of the passes in which an image is sampled, without any effect on the image.

Each pass runs with the layers' own processors, so its output is that of a pass that is not recorded, bit for bit. The
maps of names are added to one sum for all passes, so that memory does not grow with the number of steps. Self-attention
is recorded in one of the passes.

Axes: B images in the batch, P positions of a resolution.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers.models.attention_processor import Attention

from diffseg.attention.backends import AttentionBackend
from diffseg.attention.layers import attention_layers
from diffseg.attention.maps import CrossAttention, SelfAttention
from diffseg.attention.name_context import BesideProcessor, NameContext
from diffseg.attention.processor import replace_processors, split_heads
from diffseg.attention.recorder import AttentionRecorder
from diffseg.attention.sums import AttentionSums


class Trajectory:
    """The attention of the passes of one batch."""

    def __init__(self, recorder: AttentionRecorder, latents: torch.Tensor, names: NameContext | None) -> None:
        """Prepare the sums, which are 0.

        Args:
            recorder: The recorder of the UNet.
            latents: [B, C, h, w], of which only shape and device are used.
            names: The names whose cross-attention is recorded beside the passes; None if none are.
        """
        self.recorder, self.names = recorder, names
        layers = attention_layers(recorder.unet)
        self._self_layers = [layer for layer in layers if not layer.module.is_cross_attention]
        self._cross_layers = [layer for layer in layers if layer.module.is_cross_attention]
        self._cross: AttentionSums | None = None
        if names is not None:
            self._cross = AttentionSums(self._cross_layers, recorder.unet, latents, tokens=names.tokens)
        self._cross_passes = 0

    @torch.inference_mode()
    def run(
        self, latents: torch.Tensor, timestep: Any, context: torch.Tensor, *, record_cross: bool, **unet_options: Any
    ) -> torch.Tensor:
        """Run a pass and return the UNet's output [B, C, h, w].

        Args:
            latents: [B, C, h, w].
            timestep: As for the UNet.
            context: [B, L, D], embeddings of the prompts.
            record_cross: Whether the names are recorded in this pass.
            unet_options: Further keyword arguments of the UNet.
        """
        processors = self._cross_processors() if record_cross else {}
        return self._run(processors, latents, timestep, context, unet_options)

    @torch.inference_mode()
    def run_with_self_attention(
        self, latents: torch.Tensor, timestep: Any, context: torch.Tensor, *, record_cross: bool, **unet_options: Any
    ) -> tuple[torch.Tensor, SelfAttention]:
        """Run a pass as `run` does, and return the UNet's output and the self-attention of the pass."""
        processors = self._cross_processors() if record_cross else {}
        sums = AttentionSums(self._self_layers, self.recorder.unet, latents)
        for layer in self._self_layers:
            own = layer.module.processor
            processors[layer.module] = SelfBesideProcessor(own, self.recorder.backend, sums.of(layer))
        output = self._run(processors, latents, timestep, context, unet_options)
        return output, sums.self_attention()

    def cross_attention(self) -> CrossAttention:
        """Return the maps of names, the mean over heads, layers and recorded passes; the sums are used up.

        Raises:
            ValueError: No pass was recorded.
        """
        if self._cross is None or self.names is None or not self._cross_passes:
            raise ValueError("no pass recorded the cross-attention of names")
        maps = self._cross.all_cross_attention().combine_tokens(self.names.weights)
        return replace(maps, maps={grid: of_grid / self._cross_passes for grid, of_grid in maps.maps.items()})

    def _cross_processors(self) -> dict[Attention, Any]:
        if self._cross is None or self.names is None:
            return {}
        self._cross_passes += 1
        record = self.recorder.backend.record
        return {
            layer.module: BesideProcessor(
                layer.module.processor, record, self.names, layer.name, self._cross.of(layer), is_last=False
            )
            for layer in self._cross_layers
        }

    def _run(
        self,
        processors: dict[Attention, Any],
        latents: torch.Tensor,
        timestep: Any,
        context: torch.Tensor,
        unet_options: dict[str, Any],
    ) -> torch.Tensor:
        unet = self.recorder.unet
        with replace_processors(unet, processors):
            return unet(latents, timestep, encoder_hidden_states=context, **unet_options).sample


class SelfBesideProcessor:
    """Records a self-attention layer, and leaves the layer itself to the processor that it has."""

    def __init__(self, processor: Any, backend: AttentionBackend, total: torch.Tensor) -> None:
        """Prepare one pass.

        Args:
            processor: The layer's own processor.
            backend: How attention is recorded.
            total: float32 [B, P, P], the sum of maps to which this layer's is added.
        """
        self.processor, self.backend, self.total = processor, backend, total

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        """Record the layer and run it."""
        queries, keys = (split_heads(to(hidden_states), attn.heads) for to in (attn.to_q, attn.to_k))
        self.backend.record(queries, keys, attn.scale, self.total)
        return self.processor(attn, hidden_states, *arguments, **options)
