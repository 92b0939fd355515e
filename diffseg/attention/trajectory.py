"""Record the attention of the passes in which an image is sampled, without any effect on the image.

Each pass runs with the layers' own processors, so its output is that of a pass that is not recorded, bit for bit. The
maps of names are added to one sum for all passes, so that memory does not grow with the number of steps. Each image has
its own names, and is recorded by itself, so that its maps do not depend on the other images of its batch.
Self-attention is recorded in one of the passes.

Axes: B images in the batch, P positions of a resolution, T names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention

from diffseg.attention.backends import AttentionBackend
from diffseg.attention.layers import attention_layers
from diffseg.attention.maps import CrossAttention, SelfAttention
from diffseg.attention.name_context import LayerWithQueries, NameContext, Record
from diffseg.attention.processor import replace_processors, split_heads
from diffseg.attention.recorder import AttentionRecorder
from diffseg.attention.sums import AttentionSums


class Trajectory:
    """Records the attention of the passes in which one batch is sampled."""

    def __init__(self, recorder: AttentionRecorder, latents: torch.Tensor, names: Sequence[NameContext] = ()) -> None:
        """Prepare the sums, which are 0.

        Args:
            recorder: The recorder of the UNet.
            latents: [B, C, h, w]. Only their shape and their device are used.
            names: For each image, a context with the names whose cross-attention is recorded; empty to record none.
        """
        self.recorder, self.names = recorder, names
        layers = attention_layers(recorder.unet)
        self._self_layers = [layer for layer in layers if not layer.module.is_cross_attention]
        self._cross_layers = [layer for layer in layers if layer.module.is_cross_attention]
        self._sums = [
            AttentionSums(self._cross_layers, recorder.unet, latents[image : image + 1], tokens=context.tokens)
            for image, context in enumerate(names)
        ]
        self._recorded = 0

    @torch.inference_mode()
    def run(
        self, latents: torch.Tensor, timestep: Any, context: torch.Tensor, *, record_cross: bool, **unet_options: Any
    ) -> torch.Tensor:
        """Run a pass and return the UNet's output [B, C, h, w].

        Args:
            latents: [B, C, h, w].
            timestep: As for the UNet.
            context: [B, L, D], embeddings of the prompts.
            record_cross: Whether the cross-attention of names is recorded in this pass. Without names it has no effect.
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
        """Return the maps of names, the mean over heads, layers and recorded passes. Call it once: it changes the sums.

        Returns:
            Maps [B, T, P] of each resolution. T is the largest number of names of an image; maps of the names that an
            image lacks are 0.

        Raises:
            ValueError: No pass was recorded.
        """
        if not self._recorded:
            raise ValueError("no pass recorded the cross-attention of names")
        images = [
            sums.all_cross_attention().combine_tokens(context.weights)
            for sums, context in zip(self._sums, self.names, strict=True)
        ]
        count = max(context.weights.shape[1] for context in self.names)
        maps = {
            grid: torch.cat([F.pad(image.maps[grid], (0, 0, 0, count - image.maps[grid].shape[1])) for image in images])
            for grid in images[0].maps
        }
        return replace(images[0], maps={grid: of_grid / self._recorded for grid, of_grid in maps.items()})

    def _cross_processors(self) -> dict[Attention, Any]:
        if not self.names:
            return {}
        self._recorded += 1
        return {
            layer.module: NamesBesideProcessor(
                layer.module.processor,
                self.recorder.backend.record,
                [
                    (context.keys[layer.name], sums.of(layer))
                    for sums, context in zip(self._sums, self.names, strict=True)
                ],
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


class NamesBesideProcessor:
    """Records the attention to the names of each image, and leaves the layer itself to the processor that it has."""

    def __init__(self, processor: Any, record: Record, images: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Prepare one pass.

        Args:
            processor: The layer's own processor.
            record: How attention is recorded.
            images: For each image, the keys of its names [1, K, H·D], and the sum of maps to which this layer's is
                added, float32 [1, P, K].
        """
        self.processor, self.record, self.images = processor, record, images

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        """Record the layer and run it."""
        projected = attn.to_q(hidden_states)
        queries = split_heads(projected, attn.heads)
        for image, (keys, total) in enumerate(self.images):
            self.record(queries[image : image + 1], split_heads(keys, attn.heads), attn.scale, total)
        layer: Any = LayerWithQueries(attn, projected)
        return self.processor(layer, hidden_states, *arguments, **options)


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
        queries, keys = (split_heads(project(hidden_states), attn.heads) for project in (attn.to_q, attn.to_k))
        self.backend.record(queries, keys, attn.scale, self.total)
        return self.processor(attn, hidden_states, *arguments, **options)
