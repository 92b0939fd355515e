"""One loaded model: from images to latents, and through one pass of the UNet to attention maps.

Axes: B images in the batch, S pixels per side, h and w of the latents, L tokens of a prompt, D features of a token, C
chosen tokens, T names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderTiny

from diffseg.attention.backends import choose_backend
from diffseg.attention.columns import pad_columns
from diffseg.attention.maps import CrossAttention, SelfAttention
from diffseg.attention.name_context import NameContext
from diffseg.attention.recorder import AttentionRecorder
from diffseg.attention.sums import latent_multiple
from diffseg.devices import to_device
from diffseg.model.checkpoint import Checkpoint
from diffseg.model.compilation import compile_model
from diffseg.model.conditioning import GUIDANCE_SCALE, guidance_embedding, precondition, size_conditioning
from diffseg.model.config_fields import ADDED_SDXL
from diffseg.model.name_keys import NameKeys
from diffseg.model.text import EMPTY_PROMPT, Prompt

Step = Callable[[str], AbstractContextManager]
"""Context manager factory that is called with the name of a step of the work, to time it."""

PIXELS_PER_LATENT = 8


def no_step(name: str) -> AbstractContextManager:
    """Do not time the step."""
    return nullcontext()


class _Conditioning(NamedTuple):
    """What the UNet reads beside the latents in a pass with prompts.

    Attributes:
        context: [B, L, D], embeddings of the prompts.
        added: Further conditioning by the prompts, each [B, …].
        columns: int64 [B, C], positions of the names' tokens in the prompts.
        weights: float32 [B, T, C], the weight of each token in each name of the image. It is the mean over the name's
            tokens, so that names of many tokens have no advantage.
    """

    context: torch.Tensor
    added: dict[str, torch.Tensor]
    columns: torch.Tensor
    weights: torch.Tensor


class PassInputs(NamedTuple):
    """The arguments of the UNet in a pass.

    Attributes:
        latents: [B, 4, h, w].
        timesteps: What the network reads as its timestep, [B].
        options: Further keyword arguments.
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    options: dict[str, Any]


class Backbone:
    """The VAE encoder and the UNet of a checkpoint on one device."""

    def __init__(self, checkpoint: Checkpoint, *, compile: bool = False) -> None:
        """Prepare passes of a checkpoint.

        Args:
            checkpoint: The checkpoint.
            compile: Whether its models are compiled in place, see `compile_model`.

        Raises:
            ValueError: A layer computes something that cannot be recorded.
        """
        self.checkpoint = checkpoint
        self.compiled = compile
        if compile:
            compile_model(checkpoint.vae, checkpoint.unet)
        self.recorder = AttentionRecorder(checkpoint.unet, choose_backend(checkpoint.unet))
        self.pixel_multiple = PIXELS_PER_LATENT * latent_multiple(checkpoint.unet)
        self._name_keys: NameKeys | None = None
        self._latents_mean, self._latents_std = self._of_channels("latents_mean"), self._of_channels("latents_std")

    @torch.inference_mode()
    def latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return scaled latents [B, 4, S/8, S/8], the mean of the posterior, of float32 [B, 3, S, S] in [−1, 1].

        Where the autoencoder's configuration has a mean and a standard deviation of each channel, as in Playground
        v2.5, the latents are standardised as diffusers' StableDiffusionXLImg2ImgPipeline does.
        """
        vae = self.checkpoint.vae
        encoded = vae.encode(to_device(pixels, vae.device, vae.dtype))
        raw = encoded.latents if isinstance(vae, AutoencoderTiny) else encoded.latent_dist.mode()
        if self._latents_mean is None or self._latents_std is None:
            scaled = raw * vae.config.scaling_factor
        else:
            scaled = (raw - self._latents_mean) * vae.config.scaling_factor / self._latents_std
        return scaled.to(self.checkpoint.unet.dtype)

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the images of scaled latents [B, 4, h, w], uint8 [B, 8 h, 8 w, 3]; it undoes `latents`.

        The checkpoint must have been loaded with its decoder.
        """
        vae = self.checkpoint.vae
        raw = latents.to(vae.dtype) / vae.config.scaling_factor
        if self._latents_mean is not None and self._latents_std is not None:
            raw = raw * self._latents_std + self._latents_mean
        pixels = vae.decode(raw).sample.float()
        return pixels.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def _of_channels(self, key: str) -> torch.Tensor | None:
        """Return numbers of the autoencoder's configuration as a tensor [1, 4, 1, 1], None if it has none."""
        vae = self.checkpoint.vae
        values = vae.config.get(key)
        return None if values is None else torch.tensor(values, device=vae.device, dtype=vae.dtype).view(1, -1, 1, 1)

    def self_attention(self, pixels: torch.Tensor, timestep: int, step: Step = no_step) -> SelfAttention:
        """Run one unconditional pass without added noise, and return its self-attention.

        Args:
            pixels: float32 [B, 3, S, S] in [−1, 1].
            timestep: Diffusion timestep, 0 to 999.
            step: Timer of steps.
        """
        checkpoint = self.checkpoint
        with step("encode"):
            latents = self.latents(pixels)
        with step("unet"):
            context = checkpoint.context.expand(len(pixels), -1, -1)
            inputs = self.inputs(latents, timestep, checkpoint.added)
            return self.recorder.self_attention(inputs.latents, inputs.timesteps, context, **inputs.options)

    def attention(
        self,
        pixels: torch.Tensor,
        timestep: int,
        prompts: Sequence[Sequence[Prompt]],
        step: Step = no_step,
        *,
        weigh: bool = False,
    ) -> tuple[SelfAttention, CrossAttention]:
        """Run one pass per prompt of an image, and return self-attention and cross-attention.

        Args:
            pixels: float32 [B, 3, S, S] in [−1, 1].
            timestep: Diffusion timestep, 0 to 999.
            prompts: One or more prompts for each image; each after the first costs one more pass.
            step: Timer of steps.
            weigh: Whether heads and layers have weights, see `diffseg.attention.attention_weights`.

        Returns:
            The self-attention of the first pass, and the cross-attention [B, T, h·w] of names, in the order of the
            prompts. T is the largest number of names of an image; maps of the names that an image lacks are 0.
        """
        with step("encode"):
            latents = self.latents(pixels)
        attention, cross = None, None
        for turn in range(max(map(len, prompts))):
            with step("text"):
                conditioning = self._conditioning(prompts, turn, latents)
            with step("unet"):
                inputs = self.inputs(latents, timestep, conditioning.added)
                attention_of_pass, cross_of_tokens = self.recorder.attention(
                    inputs.latents,
                    inputs.timesteps,
                    conditioning.context,
                    columns=conditioning.columns,
                    weigh=weigh,
                    **inputs.options,
                )
            cross_of_names = cross_of_tokens.combine_tokens(conditioning.weights)
            attention = attention or attention_of_pass
            cross = cross_of_names if cross is None else cross.add(cross_of_names)
        assert attention is not None
        assert cross is not None
        return attention, cross

    def attention_beside(
        self,
        pixels: torch.Tensor,
        timestep: int,
        prompts: Sequence[Prompt],
        step: Step = no_step,
        *,
        reads_captions: bool = False,
        background_words: Sequence[str] = (),
        weigh: bool = False,
    ) -> tuple[SelfAttention, CrossAttention]:
        """Run one pass whose names are recorded beside it, see `diffseg.attention.name_context`.

        Args:
            pixels: float32 [B, 3, S, S] in [−1, 1].
            timestep: Diffusion timestep, 0 to 999.
            prompts: The names of each image, and the template of the prompt in which each name is embedded.
            step: Timer of steps.
            reads_captions: Whether the text of the prompts conditions the pass, instead of the empty prompt.
            background_words: W words that are recorded as further names of all images.
            weigh: Whether heads and layers have weights, see `diffseg.attention.attention_weights`.

        Returns:
            Self-attention, and the cross-attention [B, T + W, h·w] of names and then words. T is the largest number of
            names of an image, at least 1; maps of the names that an image lacks are 0.
        """
        with step("encode"):
            latents = self.latents(pixels)
        with step("text"):
            names = self.name_context([prompt.names for prompt in prompts], prompts[0].template, background_words)
            context, added = self.checkpoint.context.expand(len(pixels), -1, -1), self.checkpoint.added
            if reads_captions:
                context, added = self.embed([prompt.text for prompt in prompts])
        with step("unet"):
            inputs = self.inputs(latents, timestep, added)
            return self.recorder.attention_beside(
                inputs.latents, inputs.timesteps, context, names=names, weigh=weigh, **inputs.options
            )

    def name_context(
        self, names: Sequence[Sequence[str]], template: str = "{}", words: Sequence[str] = ()
    ) -> NameContext:
        """Return the second context of a batch, see `diffseg.model.name_keys.NameKeys.context`."""
        if self._name_keys is None:
            assert self.checkpoint.text is not None
            self._name_keys = NameKeys(self.checkpoint.text, self.checkpoint.unet)
        return self._name_keys.context(names, template, words)

    def _conditioning(self, prompts: Sequence[Sequence[Prompt]], turn: int, latents: torch.Tensor) -> _Conditioning:
        """Return the conditioning by each image's prompt at index `turn`; images with fewer get an empty prompt."""
        text = self.checkpoint.text
        assert text is not None
        prompts_of_pass = [of_image[turn] if turn < len(of_image) else EMPTY_PROMPT for of_image in prompts]
        tokens = [text.columns(prompt) for prompt in prompts_of_pass]
        columns = pad_columns([list(chain.from_iterable(of_names)) for of_names in tokens], latents.device)
        names_before = [sum(len(prompt.names) for prompt in of_image[:turn]) for of_image in prompts]
        most_names = max(1, *(sum(len(prompt.names) for prompt in of_image) for of_image in prompts))
        weights = torch.zeros(len(prompts), most_names, columns.shape[1])
        for weights_of_image, tokens_of_names, first in zip(weights, tokens, names_before, strict=True):
            start = 0
            for name, name_tokens in enumerate(tokens_of_names, start=first):
                weights_of_image[name, start : start + len(name_tokens)] = 1 / max(1, len(name_tokens))
                start += len(name_tokens)
        context, added = self.embed([prompt.text for prompt in prompts_of_pass])
        return _Conditioning(context, added, columns, to_device(weights, latents.device))

    def embed(self, texts: Sequence[str]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the context [B, L, D] of a pass with the given prompts, and its further conditioning, each [B, …].

        The checkpoint must have been loaded with its text encoders.
        """
        text, unet = self.checkpoint.text, self.checkpoint.unet
        assert text is not None
        embeddings = [text.embed(prompt) for prompt in texts]
        context = torch.cat([embedding.context for embedding in embeddings]).to(unet.device, unet.dtype)
        added = {
            name: torch.cat([embedding.added[name] for embedding in embeddings]).to(unet.device, unet.dtype)
            for name in embeddings[0].added
        }
        return context, added

    def inputs(self, latents: torch.Tensor, timestep: int, added: Mapping[str, torch.Tensor]) -> PassInputs:
        """Return the arguments of the UNet in a pass, besides the prompts.

        Args:
            latents: Scaled latents [B, 4, h, w].
            timestep: Diffusion timestep, 0 to 999.
            added: Further conditioning by the prompts, each [B, …] or [1, …].
        """
        checkpoint, batch = self.checkpoint, len(latents)
        config = checkpoint.unet.config
        read_as: float = timestep
        if config.addition_embed_type == ADDED_SDXL:
            height, width = (PIXELS_PER_LATENT * side for side in latents.shape[-2:])
            added = {**added, "time_ids": to_device(size_conditioning(height, width), latents.device, latents.dtype)}
        options: dict[str, Any] = {
            "added_cond_kwargs": {name: value.expand(batch, -1) for name, value in added.items()} or None
        }
        if config.time_cond_proj_dim is not None:
            embedding = guidance_embedding(config.time_cond_proj_dim)
            options["timestep_cond"] = to_device(embedding, latents.device, latents.dtype).expand(batch, -1)
        if checkpoint.sigma_data is not None:
            scale, read_as = precondition(timestep, checkpoint.sigma_data)
            latents = latents * scale
        # A plain number would be copied to the GPU, and the copy would wait for the device.
        return PassInputs(latents, torch.full((batch,), read_as, device=latents.device), options)

    def conditioning(self, resolution: int) -> dict[str, float]:
        """Return what besides text conditions passes, where earlier versions ran the checkpoint without it.

        It belongs to the fingerprint of a run. It is empty for SD 1.x, SD 2.x, and SDXL at its own resolution.

        Args:
            resolution: Side of the input square in pixels.
        """
        checkpoint, values = self.checkpoint, dict[str, float]()
        if checkpoint.unet.config.addition_embed_type == ADDED_SDXL and resolution != checkpoint.resolution:
            values["size"] = resolution
        if checkpoint.unet.config.time_cond_proj_dim is not None:
            values["guidance"] = GUIDANCE_SCALE
        if checkpoint.sigma_data is not None:
            values["sigma_data"] = checkpoint.sigma_data
        return values
