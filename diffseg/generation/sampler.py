"""Sample latents from noise with classifier-free guidance, and record attention on the way.

Axes: B images in the batch, h and w of the latents, L tokens of a prompt, D features of a token, S pixels per side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from diffseg.attention.maps import CrossAttention, SelfAttention
from diffseg.attention.name_context import NameContext
from diffseg.attention.trajectory import Trajectory
from diffseg.devices import to_device
from diffseg.generation.schedule import check_scheduler, diffusion_timesteps, make_scheduler, step_options
from diffseg.generation.settings import GenerationSettings
from diffseg.model.backbone import PIXELS_PER_LATENT, Backbone
from diffseg.model.conditioning import guidance_embedding, size_conditioning
from diffseg.model.config_fields import ADDED_SDXL

LATENT_CHANNELS = 4


class Condition(NamedTuple):
    """What the UNet reads besides latents and timestep.

    Attributes:
        context: [B, L, D], embeddings of the prompts.
        options: Further keyword arguments.
    """

    context: torch.Tensor
    options: dict[str, Any]


class Sample(NamedTuple):
    """Sampled latents, and the attention that was recorded.

    Attributes:
        latents: float32 [B, 4, h, w].
        self_attention: What `keep` returned for the self-attention of the recorded step; None without recording.
        cross_attention: Maps of names; None unless names were recorded.
    """

    latents: torch.Tensor
    self_attention: Any
    cross_attention: CrossAttention | None


class Sampler:
    """Samples batches of latents with a checkpoint."""

    def __init__(self, backbone: Backbone, settings: GenerationSettings, *, side: int, attention_timestep: int) -> None:
        """Prepare sampling.

        Args:
            backbone: Autoencoder and UNet, loaded with text encoders and the decoder.
            settings: Settings of the generation.
            side: Side of the images in pixels.
            attention_timestep: Self-attention is recorded in the step whose diffusion timestep is nearest to this one.

        Raises:
            ValueError: The checkpoint cannot be sampled with these settings.
        """
        checkpoint = backbone.checkpoint
        check_scheduler(checkpoint.scheduler, checkpoint.name)
        self.backbone, self.settings = backbone, settings
        self.shape = (LATENT_CHANNELS, side // PIXELS_PER_LATENT, side // PIXELS_PER_LATENT)
        self.embeds_guidance = checkpoint.unet.config.time_cond_proj_dim is not None
        timesteps = diffusion_timesteps(self.scheduler(), checkpoint.sigma_data)
        self.self_step = min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - attention_timestep))
        self.cross_steps = frozenset(
            i for i, timestep in enumerate(timesteps) if settings.record_from <= timestep <= settings.record_to
        )
        if not self.cross_steps:
            raise ValueError(
                f"record_from={settings.record_from}, record_to={settings.record_to}: no step lies in this range; the "
                f"steps are at {', '.join(f'{timestep:g}' for timestep in timesteps)}"
            )

    def scheduler(self) -> Any:
        """Return a new scheduler, which samples one batch."""
        checkpoint, settings = self.backbone.checkpoint, self.settings
        return make_scheduler(settings.scheduler, checkpoint.scheduler, settings.steps, checkpoint.unet.device)

    def condition(self, texts: Sequence[str]) -> Condition:
        """Return the conditioning by prompts."""
        checkpoint, batch = self.backbone.checkpoint, len(texts)
        device, dtype, config = checkpoint.unet.device, checkpoint.unet.dtype, checkpoint.unet.config
        context, added = self.backbone.embed(texts)
        if config.addition_embed_type == ADDED_SDXL:
            sizes = size_conditioning(*(PIXELS_PER_LATENT * side for side in self.shape[1:]))
            added["time_ids"] = to_device(sizes, device, dtype).expand(batch, -1)
        options: dict[str, Any] = {"added_cond_kwargs": added or None}
        if self.embeds_guidance:
            embedding = guidance_embedding(config.time_cond_proj_dim, self.settings.guidance)
            options["timestep_cond"] = to_device(embedding, device, dtype).expand(batch, -1)
        return Condition(context, options)

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        names: Sequence[NameContext] = (),
        keep: Callable[[SelfAttention], Any] | None = None,
    ) -> Sample:
        """Sample a batch.

        The noise of an image comes from torch's CPU generator with its seed, so it is the same on all devices. The pass
        with the prompts, which is the one that is recorded, and the pass with the negative prompt run one after the
        other.

        Args:
            prompts: The prompt of each image.
            seeds: The seed of each image.
            names: For each image, a context with the names whose cross-attention is recorded; empty to record none.
            keep: Called with the self-attention of the step that records it; None records no self-attention.
        """
        settings, unet = self.settings, self.backbone.checkpoint.unet
        scheduler = self.scheduler()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(self.shape, generator=generator) for generator in generators])
        latents = to_device(noise, unet.device) * scheduler.init_noise_sigma
        condition = self.condition(prompts)
        is_guided = settings.guidance != 1 and not self.embeds_guidance
        negative = self.condition([settings.negative_prompt] * len(prompts)) if is_guided else None
        trajectory = Trajectory(self.backbone.recorder, latents, names)
        options, kept = step_options(scheduler, generators), None
        for step, timestep in enumerate(scheduler.timesteps):
            inputs = scheduler.scale_model_input(latents, timestep).to(unet.dtype)
            arguments = (inputs, timestep, condition.context)
            recorded = {"record_cross": step in self.cross_steps, **condition.options}
            if keep is not None and step == self.self_step:
                output, attention = trajectory.run_with_self_attention(*arguments, **recorded)
                kept = keep(attention)
                del attention
            else:
                output = trajectory.run(*arguments, **recorded)
            output = output.float()
            if negative is not None:
                without = unet(inputs, timestep, encoder_hidden_states=negative.context, **negative.options).sample
                output = without.float() + settings.guidance * (output - without.float())
            latents = scheduler.step(output, timestep, latents, **options).prev_sample
        return Sample(latents, kept, trajectory.cross_attention() if names else None)
