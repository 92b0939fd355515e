"""Compute the signals of a batch: one pass of the model, or several with a mirrored image and with crops, and CLIP.

Axes: B images in the batch, P = h·w positions of the working grid, S pixels of the model's square.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch

from diffseg.affinity.affinity import Affinity, record_affinity
from diffseg.affinity.features import FeatureReader, Features
from diffseg.affinity.state import AffinityState, hook_self_attention
from diffseg.attention.crops import attention_with_crops
from diffseg.attention.layer_output import LayerOutput, record_layer_output
from diffseg.attention.maps import CrossAttention, Grid, SelfAttention
from diffseg.clip.clip import Clip, Guide
from diffseg.devices import to_device
from diffseg.images.canvas import ModelInput
from diffseg.images.device_resize import squares_of
from diffseg.method.clip_guide import guide_of_attention, guide_of_features
from diffseg.method.proposals import aggregate_attention
from diffseg.method.reference_names import reference_maps
from diffseg.method.segment_features import project
from diffseg.method.signals import Signals
from diffseg.model.backbone import Backbone, Step
from diffseg.model.text import Prompt
from diffseg.reference_state import References
from diffseg.settings import SegmenterSettings
from diffseg.variants.record import VariantResponse, record_variants


class RecordedPass(NamedTuple):
    """What one pass of the model recorded.

    Attributes:
        self_attention: Self-attention at each resolution.
        cross_attention: Cross-attention of the prompts' names; None without prompts.
        affinity: Learned affinity; None without a file of it.
        features: Input of the last self-attention layer of each resolution; None unless it is needed.
        layer_output: Output of one self-attention layer; None if no stage needs it.
    """

    self_attention: SelfAttention
    cross_attention: CrossAttention | None
    affinity: Affinity | None
    features: Features | None = None
    layer_output: LayerOutput | None = None


class SignalRecorder:
    """A model, together with the settings that determine which signals are computed and how."""

    def __init__(
        self,
        backbone: Backbone,
        settings: SegmenterSettings,
        *,
        timestep: int,
        needs: frozenset[str],
        clip: Clip | None = None,
        affinity: AffinityState | None = None,
        references: References | None = None,
    ) -> None:
        """Prepare a recorder.

        Args:
            backbone: VAE encoder and UNet.
            settings: Settings of the method.
            timestep: Diffusion timestep of the pass.
            needs: Signals that the stages of the run need.
            clip: CLIP that computes the signal `clip`.
            affinity: State of learned affinity, as `diffseg fit` wrote it.
            references: References of names, for the signal `references`.
        """
        self.backbone = backbone
        self.settings = settings
        self.timestep = timestep
        self.needs = needs
        self.clip = clip
        self.affinity = affinity
        self.references = references

    @torch.inference_mode()
    def record(self, inputs: Sequence[ModelInput], batch_size: int, step: Step) -> Signals:
        """Compute the signals of up to `batch_size` images, padded to that number by repeating the last image.

        On a CPU the signals of the padding are dropped once the model has run. Every image must have a prompt if the
        run needs cross-attention, a CLIP or references.
        """
        padded = [*inputs, *[inputs[-1]] * (batch_size - len(inputs))]
        names = [prompt.names for prompt in _prompts(padded)]
        with step("resize"):
            pixels = squares_of(padded, self.backbone.checkpoint.vae.device)
        recorded = self.run_pass(pixels, self._fitting_prompts(padded), step)
        attention = recorded.self_attention
        if self.settings.attention.crops:
            attention = self._with_crops(attention, padded, step)
        with step("aggregate"):
            aggregated, grid, finite = aggregate_batch(attention, self.settings, len(inputs))
        variants = self._record_variants(pixels, step)
        if variants is not None:
            finite = finite & variants.finite[: len(finite)]
        probabilities = None
        if self.clip is not None and "clip" in self.needs:
            with step("clip"):
                guide = self._clip_guide(aggregated, finite, grid, recorded.features, len(padded))
                probabilities = self._clip_probabilities(pixels, names, guide)
        has_names = recorded.cross_attention is not None or probabilities is not None
        counts = torch.tensor([len(of_image) for of_image in names]) if has_names else None
        features = project(recorded.features) if recorded.features and "features" in self.needs else None
        maps = None
        if self.references is not None and features is not None and "references" in self.needs:
            with step("name"):
                maps = reference_maps(features, self.references, names)
        signals = Signals(
            pixels=pixels,
            grid=grid,
            self_attention=aggregated,
            finite=finite,
            cross_attention=recorded.cross_attention,
            clip_probabilities=probabilities,
            name_counts=None if counts is None else to_device(counts, aggregated.device),
            background_words=len(self.settings.segment_names.background_words) if has_names else 0,
            features=features,
            reference_maps=maps,
            references_background=self.references is not None and self.references.has_background,
            affinity=recorded.affinity,
            layer_output=recorded.layer_output,
            variants=variants,
        )
        return signals.of_images(0, len(aggregated))

    @torch.inference_mode()
    def run_pass(self, pixels: torch.Tensor, prompts: list[list[Prompt]] | None, step: Step) -> RecordedPass:
        """Run the model once, or, with the setting `flip`, twice, and average with the mirrored image.

        The features and the output of a layer are always those of the image itself.

        Args:
            pixels: float32 [B, 3, S, S] in [−1, 1].
            prompts: Prompts of each image, or None for an unconditional pass.
            step: Timer of steps.
        """
        recorded = self._run_once(pixels, prompts, step)
        if self.settings.attention.flip:
            mirrored = self._run_once(pixels.flip(-1), prompts, step)
            recorded.self_attention.average_with_mirrored(mirrored.self_attention)
            if recorded.cross_attention is not None and mirrored.cross_attention is not None:
                recorded.cross_attention.average_with_mirrored(mirrored.cross_attention)
            if recorded.affinity is not None and mirrored.affinity is not None:
                recorded.affinity.average_with_mirrored(mirrored.affinity)
        return recorded

    def _run_once(self, pixels: torch.Tensor, prompts: list[list[Prompt]] | None, step: Step) -> RecordedPass:
        unet, reader = self.backbone.checkpoint.unet, FeatureReader()
        guided_by_features = "clip" in self.needs and self.settings.clip.clip_guide == "features"
        reads_features = guided_by_features or "features" in self.needs
        with (
            record_affinity(self.affinity, unet) as affinity_of_pass,
            hook_self_attention(unet, reader) if reads_features else nullcontext(),
            record_layer_output(unet, pixels) if "layer_output" in self.needs else nullcontext() as output_of_pass,
        ):
            if prompts is None:
                attention, cross = self.backbone.self_attention(pixels, self.timestep, step), None
            elif self.settings.segment_names.prompt != "names":
                attention, cross = self.backbone.attention_beside(
                    pixels,
                    self.timestep,
                    [of_image[0] for of_image in prompts],
                    step,
                    reads_captions=self.settings.segment_names.prompt == "caption",
                    background_words=self.settings.segment_names.background_words,
                    weigh=self.settings.segment_names.vote == "goca",
                )
            else:
                weigh = self.settings.segment_names.vote == "goca"
                attention, cross = self.backbone.attention(pixels, self.timestep, prompts, step, weigh=weigh)
            features = reader.features(list(attention.maps)) if reads_features else None
            return RecordedPass(attention, cross, affinity_of_pass(), features, output_of_pass and output_of_pass())

    def _record_variants(self, pixels: torch.Tensor, step: Step) -> VariantResponse | None:
        if "variants" not in self.needs:
            return None
        settings = self.settings.covariance
        with step("variants"):
            return record_variants(
                self.backbone, pixels, variants=settings.variants, timestep=settings.variant_timestep
            )

    def _clip_probabilities(
        self, pixels: torch.Tensor, names: Sequence[Sequence[str]], guide: Guide | None
    ) -> torch.Tensor:
        """Return the CLIP's probabilities of names and then of background words, float32 [B, T + W, h, w].

        Background words take the place of the CLIP's own distractors. A word that is a name of the image is 0 there.
        """
        assert self.clip is not None
        words = self.settings.segment_names.background_words
        if not words:
            return self.clip.probabilities(pixels, names, settings=self.settings.clip, guide=guide)
        own_words = [[w for w in words if w.casefold() not in {n.casefold() for n in of_image}] for of_image in names]
        texts = [[*of_image, *others] for of_image, others in zip(names, own_words, strict=True)]
        found = self.clip.probabilities(pixels, texts, (), settings=self.settings.clip, guide=guide)
        most = max(1, *map(len, names))
        probabilities = found.new_zeros(len(names), most + len(words), *found.shape[2:])
        for image, (of_image, others) in enumerate(zip(names, own_words, strict=True)):
            probabilities[image, : len(of_image)] = found[image, : len(of_image)]
            for place, word in enumerate(others, start=len(of_image)):
                probabilities[image, most + words.index(word)] = found[image, place]
        return probabilities

    def _clip_guide(
        self, attention: torch.Tensor, finite: torch.Tensor, grid: Grid, features: Features | None, batch_size: int
    ) -> Guide | None:
        """Return the attention for the CLIP's last layer, for all images of the padded batch; None without a guide."""
        settings = self.settings.clip
        options = {"shift": settings.clip_guide_shift, "scale": settings.clip_guide_scale}
        if settings.clip_guide == "none":
            return None
        if features is not None:
            return Guide(guide_of_features(features, grid, **options), grid)
        # On a CPU the attention of padding is gone. An image's labels must not depend on how full its batch is.
        images = torch.arange(batch_size, device=attention.device).clamp_max(len(attention) - 1)
        rows = torch.where(finite[:, None, None], attention, 0)
        return Guide(guide_of_attention(rows, **options)[images], grid)

    def _with_crops(self, attention: SelfAttention, inputs: Sequence[ModelInput], step: Step) -> SelfAttention:
        detail = torch.stack([model_input.detail for model_input in inputs if model_input.detail is not None])
        settings = self.settings.attention
        return attention_with_crops(
            attention,
            detail,
            settings.crops,
            settings.weights,
            lambda crop: self.run_pass(crop, None, step).self_attention,
        )

    def _fitting_prompts(self, inputs: Sequence[ModelInput]) -> list[list[Prompt]] | None:
        """Return the prompts of each image, several if its names do not fit one; None if the UNet reads no names."""
        if "cross_attention" not in self.needs:
            return None
        text = self.backbone.checkpoint.text
        if text is None:
            raise ValueError("stage cross names segments by cross-attention: load the model with its text encoders")
        if self.settings.segment_names.prompt != "names":
            return [[prompt] for prompt in _prompts(inputs)]
        return [text.split_to_fit(prompt) for prompt in _prompts(inputs)]


def aggregate_batch(
    attention: SelfAttention, settings: SegmenterSettings, count: int
) -> tuple[torch.Tensor, Grid, torch.Tensor]:
    """Aggregate attention in place: image by image for the first `count` images on a CPU, else the whole batch."""
    finest = attention.maps[attention.finest]
    if finest.device.type != "cpu":
        return aggregate_attention(attention, settings, overwrite=True)
    images = [attention.of_images(image, image + 1) for image in range(count)]
    finite = [aggregate_attention(image, settings, overwrite=True)[2] for image in images]
    return finest[:count], attention.finest, torch.cat(finite)


def _prompts(inputs: Sequence[ModelInput]) -> list[Prompt]:
    return [model_input.prompt for model_input in inputs if model_input.prompt is not None]
