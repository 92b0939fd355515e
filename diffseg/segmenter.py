"""DiffSeg from images, or from attention of your own, to label maps (Tian et al., CVPR 2024).

Axes: B images in the batch, H and W pixels of an image, P token positions, K segments.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image

from diffseg.affinity.affinity import Affinity, check_state, record_affinity
from diffseg.affinity.state import AffinityState, read_state
from diffseg.attention.crops import attention_with_crops
from diffseg.attention.maps import CrossAttention, SelfAttention
from diffseg.devices import to_device
from diffseg.images.canvas import ModelInput, fit_image
from diffseg.images.decode import decode_image
from diffseg.method.decide import Decision, decide_on_device
from diffseg.method.proposals import aggregate_attention
from diffseg.method.stages import Scores, Signals, stages_of, with_name_scores
from diffseg.model.backbone import Backbone, Step, no_step
from diffseg.model.checkpoint import load_checkpoint
from diffseg.model.clip import Clip, load_clip
from diffseg.model.text import Prompt, prompt_of_names
from diffseg.pending import PendingBatch
from diffseg.settings import Dtype, Preset, SegmenterSettings, StageName, settings_of

ImageLike = np.ndarray | Image.Image | str | os.PathLike | bytes

STEPS = {"diffseg": "merge", "ncut": "merge", "par": "refine", "cross": "name", "clip": "name"}
"""What the timers call a stage, where that is not its name."""


class Looked(NamedTuple):
    """What the model looked at in a batch: other positions of the image, and the names in the prompt, where asked.

    clip: float32 [B, T, h, w], what a CLIP says each position shows, where asked.
    """

    own: SelfAttention
    cross: CrossAttention | None = None
    clip: torch.Tensor | None = None
    learned: Affinity | None = None

    def of_images(self, start: int, stop: int) -> Looked:
        """A part of the batch."""
        return Looked(
            self.own.of_images(start, stop),
            self.cross and self.cross.of_images(start, stop),
            None if self.clip is None else self.clip[start:stop],
            self.learned and self.learned.of_images(start, stop),
        )


class Segmenter:
    """The method with a model: call it with an image, or with a list, which runs as batches.

    Every batch has the same size (short ones are padded), so an image's labels do not depend on its neighbours.
    """

    def __init__(
        self,
        backbone: Backbone,
        settings: SegmenterSettings,
        *,
        batch_size: int = 1,
        naming: bool = False,
        clip: Clip | None = None,
        affinity: AffinityState | None = None,
    ) -> None:
        """naming: whether images come with names, see `from_pretrained`. affinity: what `diffseg fit` learned."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected 1 or more")
        checkpoint = backbone.checkpoint
        self.backbone = backbone
        self.settings = settings
        self.batch_size = batch_size
        self.tau = settings.merging.tau or checkpoint.tau
        self.timestep = checkpoint.timestep if settings.attention.timestep is None else settings.attention.timestep
        self.resolution = settings.model_input.resolution or checkpoint.resolution
        naming_stage: StageName = "cross" if clip is None else "clip"
        self.method = settings.method or (*checkpoint.method, *((naming_stage,) if naming else ()))
        self.clip = clip
        if "clip" in self.method and clip is None:
            raise ValueError(
                f"method {','.join(self.method)}: stage clip needs a CLIP, and none comes with this program; name a "
                "folder, hub id or URL of one in the transformers layout (clip=…, --clip)"
            )
        self.stages = stages_of(self.method, settings, self.tau)
        self.affinity = affinity
        check_state(affinity, checkpoint.sha256, self.method)
        self.needs = frozenset[str]().union(*(stage.needs for stage in self.stages))
        if self.resolution % backbone.pixel_multiple:
            raise ValueError(
                f"resolution={self.resolution}: expected a multiple of {backbone.pixel_multiple} for this checkpoint"
            )

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = "tiny",
        *,
        revision: str | None = None,
        vae: str | os.PathLike[str] | None = None,
        device: str = "cpu",
        dtype: Dtype = "float32",
        batch_size: int = 1,
        naming: bool = False,
        clip: str | os.PathLike[str] | None = None,
        affinity: str | os.PathLike[str] | None = None,
        preset: Preset = "default",
        **settings: Any,
    ) -> Segmenter:
        """From `tiny`, a local diffusers folder or a hub id; `settings` are fields of SegmenterSettings.

        vae: an autoencoder in the place of the model's own, see `load_checkpoint`. naming: whether images come with
        names; segments are then named by CLIP if one is given, else by cross-attention, where `method` does not say
        otherwise. clip: a local folder or hub id of a CLIP in the transformers layout, see `load_clip`.
        affinity: a file of `diffseg fit`, of heads for stage affinity or of features for stage walk.

        Raises CheckpointError (a ValueError) where the checkpoint cannot be used, ValueError for bad settings.
        """
        resolved = settings_of(preset, **settings)
        checkpoint = load_checkpoint(
            model,
            revision=revision,
            vae=vae,
            device=device,
            dtype=getattr(torch, dtype),
            text=needs_text_encoders(resolved, naming=naming and clip is None),
        )
        images_and_text = None if clip is None else load_clip(clip, device=device)
        return cls(
            Backbone(checkpoint),
            resolved,
            batch_size=batch_size,
            naming=naming,
            clip=images_and_text,
            affinity=None if affinity is None else read_state(Path(affinity).read_bytes(), str(affinity)),
        )

    def __call__(
        self, images: ImageLike | list[ImageLike] | tuple[ImageLike, ...], names: Sequence[str] | None = None
    ) -> Any:
        """Segmentation of an image (path, bytes, PIL image or uint8 [H, W, 3]), or a list of them for a list.

        names: what segments may be called, where a stage of the method names them.
        Raises ImageError for an image that cannot be decoded and NonFiniteError where the model overflows.
        """
        single = not isinstance(images, (list, tuple))
        given = cast(Sequence[ImageLike], [images] if single else images)
        prompt = None if names is None else prompt_of_names(names)
        results = []
        for start in range(0, len(given), self.batch_size):
            canvases = [self.prepare(_as_rgb(image), prompt) for image in given[start : start + self.batch_size]]
            for result in self.launch(canvases).results():
                if isinstance(result, Exception):
                    raise result
                results.append(result)
        return results[0] if single else results

    def prepare(self, image: np.ndarray, prompt: Prompt | None = None) -> ModelInput:
        """The model's square of a uint8 [H, W, 3] image, and what is said of it; safe to call from several threads."""
        canvas, *detailed = (
            fit_image(image, side, self.settings.model_input.fit, antialias=self.settings.model_input.antialias)
            for side in ([self.resolution, 2 * self.resolution] if self.settings.attention.crops else [self.resolution])
        )
        return dataclasses.replace(canvas, detail=detailed[0].pixels if detailed else None, prompt=prompt)

    def launch(self, canvases: Sequence[ModelInput], step: Step = no_step) -> PendingBatch:
        """Send up to `batch_size` prepared images through the model; `results()` of what is returned are their labels.

        On a GPU this does not wait for the device, so that the next batch can be sent before the results of this one
        are asked for. `results()` gives a NonFiniteError in the place of an image that overflows. step: a context
        manager factory that is told the name of each step, to time it.
        """
        return self.from_attention(self.attention_of(canvases, step), canvases, step, overwrite=True)

    @torch.inference_mode()
    def attention_of(self, canvases: Sequence[ModelInput], step: Step = no_step) -> Looked:
        """What the model looks at in up to `batch_size` prepared images, with short batches padded."""
        if not 0 < len(canvases) <= self.batch_size:
            raise ValueError(f"{len(canvases)} images: expected 1 to {self.batch_size}")
        padded = [*canvases, *[canvases[-1]] * (self.batch_size - len(canvases))]
        pixels = torch.stack([canvas.pixels for canvas in padded])
        looked = self._look(pixels, self._prompts(padded), step)
        if self.clip is not None and "clip" in self.needs:
            with step("clip"):
                looked = looked._replace(clip=self.clip.probabilities(pixels, self._names(padded)))
        if not self.settings.attention.crops:
            return looked
        detail = torch.stack([canvas.detail for canvas in padded if canvas.detail is not None])
        own = attention_with_crops(
            looked.own,
            detail,
            self.settings.attention.crops,
            self.settings.attention.weights,
            lambda window: self._look(window, None, step).own,
        )
        return looked._replace(own=own)

    def _names(self, canvases: Sequence[ModelInput]) -> list[tuple[str, ...]]:
        """The names of each image. Raises ValueError where one has not even an empty list of them."""
        prompts = [canvas.prompt for canvas in canvases if canvas.prompt is not None]
        if len(prompts) < len(canvases):
            raise ValueError(f"method {','.join(self.method)} names segments: it needs names for each image")
        return [prompt.names for prompt in prompts]

    def _prompts(self, canvases: Sequence[ModelInput]) -> list[list[Prompt]] | None:
        """What the model is told of each image, in as many parts as the names of one need; None: nothing."""
        if "cross" not in self.needs:
            return None
        text, prompts = self.backbone.checkpoint.text, [canvas.prompt for canvas in canvases]
        if text is None or None in prompts:
            raise ValueError(f"method {','.join(self.method)} names segments: it needs names for each image")
        return [text.fitting(prompt) for prompt in prompts if prompt is not None]

    def _look(self, pixels: torch.Tensor, prompts: list[list[Prompt]] | None, step: Step) -> Looked:
        def look(pixels: torch.Tensor) -> Looked:
            with record_affinity(self.affinity, self.backbone.checkpoint.unet) as learned:
                if prompts is None:
                    own, cross = self.backbone.self_attention(pixels, self.timestep, step), None
                else:
                    own, cross = self.backbone.attention(pixels, self.timestep, prompts, step)
                return Looked(own, cross, learned=learned())

        looked = look(pixels)
        if self.settings.attention.flip:
            mirrored = look(pixels.flip(-1))
            looked.own.average_with_mirrored(mirrored.own)
            if looked.cross is not None and mirrored.cross is not None:
                looked.cross.average_with_mirrored(mirrored.cross)
        return looked

    @torch.inference_mode()
    def from_attention(
        self, looked: Looked, canvases: Sequence[ModelInput], step: Step = no_step, *, overwrite: bool = False
    ) -> PendingBatch:
        """The rest of `launch`, after `attention_of`. overwrite: whether what was looked at may be lost."""
        # On a CPU each image has as many proposals as it needs; on a device all have the same shape.
        device = looked.own.maps[looked.own.finest].device
        at_once = 1 if device.type == "cpu" else self.batch_size
        decisions, finite = [], []
        for start in range(0, len(canvases), at_once):
            stop = min(start + at_once, len(canvases))
            part = looked.of_images(start, start + at_once)
            signals = self._signals(part, canvases[start:stop], step, overwrite=overwrite)
            finite.append(signals.finite)
            scores: Scores | None = None
            for stage in self.stages:
                with step(STEPS.get(stage.name, stage.name)):
                    scores = stage.run(signals, scores)
            assert scores is not None
            decisions += self._decide(with_name_scores(scores, self.settings.segment_names), canvases[start:stop], step)
        return PendingBatch(
            canvases=canvases, decisions=decisions, finite=torch.cat(finite), min_area=self.settings.min_area
        )

    def _signals(self, looked: Looked, canvases: Sequence[ModelInput], step: Step, *, overwrite: bool) -> Signals:
        with step("aggregate"):
            attention, grid, finite = aggregate_attention(looked.own, self.settings, overwrite=overwrite)
        padded = [*canvases, *[canvases[-1]] * (len(attention) - len(canvases))]
        counts = [len(canvas.prompt.names) if canvas.prompt else 0 for canvas in padded]
        return Signals(
            pixels=torch.stack([canvas.pixels for canvas in padded]),
            grid=grid,
            attention=attention,
            finite=finite,
            cross=looked.cross,
            clip=looked.clip,
            learned=looked.learned,
            name_counts=None
            if looked.cross is None and looked.clip is None
            else to_device(torch.tensor(counts), attention.device),
        )

    def _decide(self, scores: Scores, canvases: Sequence[ModelInput], step: Step) -> list[Decision]:
        decisions = []
        with step("decide"):
            for image, canvas in enumerate(canvases):
                maps = scores.maps[image]
                content = canvas.content_on_grid((maps.shape[1], maps.shape[2]))
                decision = decide_on_device(maps, canvas.region_size, content, keep_margins=self.settings.min_area > 0)
                if scores.names is not None and scores.name_scores is not None:
                    decision = decision.with_names(scores.names[image], scores.name_scores[image])
                decisions.append(decision)
        return decisions


def needs_text_encoders(settings: SegmenterSettings, *, naming: bool) -> bool:
    """Whether the text encoders are needed."""
    return naming if settings.method is None else "cross" in settings.method


def _as_rgb(image: ImageLike) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return decode_image(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image array of {image.dtype} {list(image.shape)}: expected uint8 [height, width, 3]")
    return image
