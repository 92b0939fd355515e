"""One loaded model: images to latents to one UNet pass to self-attention maps.

Axes: B images in the batch, S pixels of a side, h and w of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from diffusers import AutoencoderTiny

from diffseg.attention.cross_recorder import pad_columns
from diffseg.attention.maps import CrossAttention, SelfAttention
from diffseg.attention.recorder import latent_multiple, record_attention, record_self_attention
from diffseg.devices import to_device
from diffseg.model.checkpoint import Checkpoint
from diffseg.model.text import NOTHING, Prompt

Step = Callable[[str], AbstractContextManager]
PIXELS_PER_LATENT = 8


def no_step(name: str) -> AbstractContextManager:
    """A step timer that does nothing."""
    return nullcontext()


class Backbone:
    """The VAE encoder and the UNet of a checkpoint on one device."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.pixel_multiple = PIXELS_PER_LATENT * latent_multiple(checkpoint.unet)

    @torch.inference_mode()
    def latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 4, S/8, S/8] scaled latents of float32 [B, 3, S, S] pixels in [−1, 1]; the posterior's mean."""
        vae = self.checkpoint.vae
        encoded = vae.encode(to_device(pixels, vae.device, vae.dtype))
        raw = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode()
        return (raw * vae.config.scaling_factor).to(self.checkpoint.unet.dtype)

    def self_attention(self, pixels: torch.Tensor, timestep: int, step: Step = no_step) -> SelfAttention:
        """One unconditional pass at `timestep` over float32 [B, 3, S, S] pixels in [−1, 1]; no noise is added."""
        check = self.checkpoint
        with step("encode"):
            latents = self.latents(pixels)
        with step("unet"):
            context, added = check.context.expand(len(pixels), -1, -1), _repeated(check.added, len(pixels))
            return record_self_attention(
                check.unet, latents, self._timesteps(timestep, latents), encoder_hidden_states=context, **added
            )

    def attention(
        self, pixels: torch.Tensor, timestep: int, prompts: Sequence[Sequence[Prompt]], step: Step = no_step
    ) -> tuple[SelfAttention, CrossAttention]:
        """As `self_attention`, in a pass that is told each image's prompt, and where it looks at the prompt's names.

        prompts: of each image, one or more; the self-attention is that of the first pass, and each further prompt costs
        one more. The maps of cross-attention are of names, in the order of the prompts: [B, T, h·w], T the most that an
        image has; those that it has not are 0.
        """
        with step("encode"):
            latents = self.latents(pixels)
        own, cross = None, None
        for place in range(max(map(len, prompts))):
            with step("text"):
                context, added, columns, words = self._told(prompts, place, latents)
            with step("unet"):
                timesteps = self._timesteps(timestep, latents)
                looked, found = record_attention(
                    self.checkpoint.unet, latents, timesteps, encoder_hidden_states=context, columns=columns, **added
                )
            found = found.combine_tokens(words)
            own, cross = own or looked, found if cross is None else cross.add(found)
        assert own is not None
        assert cross is not None
        return own, cross

    def _told(
        self, prompts: Sequence[Sequence[Prompt]], place: int, latents: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, Any], torch.Tensor, torch.Tensor]:
        """What the UNet is told in one pass: each image's prompt at `place`, nothing where it has fewer.

        Context [B, L, D], added conditioning, the columns of names' tokens, int64 [B, C], and what each of them counts
        for each of the image's names, float32 [B, T, C]: the mean, so that names of many tokens have no advantage.
        """
        text = self.checkpoint.text
        assert text is not None
        told = [each[place] if place < len(each) else NOTHING for each in prompts]
        before = [sum(len(prompt.names) for prompt in each[:place]) for each in prompts]
        tokens = [text.columns(prompt) for prompt in told]
        columns = pad_columns([list(chain.from_iterable(names)) for names in tokens], latents.device)
        most = max(1, *(sum(len(prompt.names) for prompt in each) for each in prompts))
        words = torch.zeros(len(prompts), most, columns.shape[1])
        for of_image, names, first in zip(words, tokens, before, strict=True):
            start = 0
            for name, own in enumerate(names, start=first):
                of_image[name, start : start + len(own)] = 1 / max(1, len(own))
                start += len(own)
        embeddings = [text.embed(prompt.text) for prompt in told]
        context = torch.cat([each.context for each in embeddings]).to(latents.device, latents.dtype)
        added = {
            name: torch.cat([each.added[name] for each in embeddings]).to(latents.device, latents.dtype)
            for name in embeddings[0].added
        }
        return context, {"added_cond_kwargs": added or None}, columns, to_device(words, latents.device)

    def _timesteps(self, timestep: int, latents: torch.Tensor) -> torch.Tensor:
        # as a number it would be copied to a GPU, which would be waited for
        return torch.full((len(latents),), timestep, device=latents.device)


def _repeated(added: Mapping[str, torch.Tensor], batch: int) -> dict[str, Any]:
    return {"added_cond_kwargs": {name: value.expand(batch, -1) for name, value in added.items()} or None}
