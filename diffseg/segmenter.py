"""DiffSeg from images to label maps (Tian et al., CVPR 2024).

Axes: H and W pixels of an image, h and w tokens of a grid.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from diffseg.affinity.state import AffinityState, read_state
from diffseg.clip.clip import Clip, load_clip
from diffseg.compatibility import Passes, check_affinity, check_compiled, check_references
from diffseg.devices import Once, work_in_wait
from diffseg.images.canvas import ModelInput, fit_image
from diffseg.images.decode import decode_image
from diffseg.method.calibration import calibrated_threshold
from diffseg.method.decide import Region, decide_images
from diffseg.method.decision import Decision
from diffseg.method.leaves import LeafSignals
from diffseg.method.name_stages import classes_to_segments
from diffseg.method.signals import Scores, Signals
from diffseg.method.stages import Stage, run_stages, stages_of, with_levels
from diffseg.model.backbone import Backbone, Step, no_step
from diffseg.model.checkpoint import load_checkpoint
from diffseg.model.text import Prompt, prompt_of_names
from diffseg.pending import PendingBatch
from diffseg.reference_state import References, load_references
from diffseg.settings import Dtype, Preset, SegmenterSettings, StageName, needs_text_encoders, settings_of
from diffseg.signal_recorder import SignalRecorder

ImageLike = np.ndarray | Image.Image | str | os.PathLike | bytes


class Segmenter:
    """The method with a model: call it with an image, or with a list of images, which run in batches.

    All batches have the same size, to which short ones are padded, so the labels of an image do not depend on the other
    images of its batch.
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
        references: References | None = None,
        stages: Sequence[StageName | Stage] | None = None,
        levels: bool = False,
        features: bool = False,
        quality: bool = False,
    ) -> None:
        """Combine a loaded model with settings.

        Args:
            backbone: VAE encoder and UNet.
            settings: Settings of the method. Where a field is None, the checkpoint's own value holds.
            batch_size: Images per pass of the model.
            naming: Whether images come with names, see `from_pretrained`.
            clip: CLIP for the stage clip.
            affinity: Learned affinity that `diffseg fit` wrote, for the stages affinity and walk.
            references: References that `diffseg fit references` wrote, for the stage references.
            stages: The stages in order, instead of those of the setting `method`: names, or objects of your own with
                the interface of `diffseg.method.stages.Stage`.
            levels: Whether results have levels (`diffseg.levels`), which the stage diffseg can give.
            features: Whether results have features (`diffseg.segmentation.Features`).
            quality: Whether results have `within_rho` and `between_rho`, see `diffseg.variants.correlation`.

        Raises:
            ValueError: The settings do not fit the model, the CLIP, the affinity or the references.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected 1 or more")
        checkpoint, timestep = backbone.checkpoint, settings.attention.timestep
        self.backbone = backbone
        self.settings = settings
        self.batch_size = batch_size
        self.tau = settings.merging.tau or checkpoint.tau
        self.timestep = checkpoint.timestep if timestep is None else timestep
        self.resolution = settings.model_input.resolution or checkpoint.resolution
        naming_stage: StageName = "references" if references else "cross" if clip is None else "clip"
        method = settings.method or (*checkpoint.method, *((naming_stage,) if naming or references else ()))
        self.stages = stages_of(method if stages is None else stages, settings, self.tau)
        if levels:
            self.stages = with_levels(self.stages, settings)
        self.method = tuple(stage.name for stage in self.stages)
        if "clip" in self.method and clip is None:
            raise ValueError(
                f"method {','.join(self.method)}: stage clip needs a CLIP, and this program includes none; give the "
                "folder, hub id or URL of one (clip=…, --clip)"
            )
        passes = Passes(backbone=backbone, timestep=self.timestep, resolution=self.resolution)
        check_affinity(affinity, passes, settings, self.method)
        self.naming = check_references(references, passes, settings, self.stages)
        self.default_prompt = None if references is None else prompt_of_names(references.names)
        self.features = features
        self.quality = quality
        for_columns = {"features": features, "variants": quality}
        self.needs = frozenset(need for need, is_wanted in for_columns.items() if is_wanted).union(
            *(stage.needs for stage in self.stages)
        )
        if backbone.compiled:
            check_compiled(self.needs, settings, quality=quality)
        if self.resolution % backbone.pixel_multiple:
            raise ValueError(
                f"resolution={self.resolution}: expected a multiple of {backbone.pixel_multiple} for this checkpoint"
            )
        # Crops read the image at twice the resolution too, which is resized on the CPU.
        self.resizes_on_device = checkpoint.vae.device.type == "cuda" and not settings.attention.crops
        self.recorder = SignalRecorder(
            backbone,
            settings,
            timestep=self.timestep,
            needs=self.needs,
            clip=clip,
            affinity=affinity,
            references=references,
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
        compile: bool = False,
        batch_size: int = 1,
        naming: bool = False,
        clip: str | os.PathLike[str] | None = None,
        words: Mapping[str, Sequence[str]] | None = None,
        affinity: str | os.PathLike[str] | None = None,
        references: str | os.PathLike[str] | None = None,
        stages: Sequence[StageName | Stage] | None = None,
        levels: bool = False,
        features: bool = False,
        quality: bool = False,
        preset: Preset = "default",
        **settings: Any,
    ) -> Segmenter:
        """Load a model and combine it with settings.

        Args:
            model: An embedded model (`tiny`, `tiny-text`), a local diffusers folder, a single .safetensors file in the
                original layout of SD 1.x, SD 2.x or SDXL, or a hub id.
            revision: Branch, tag or commit of the hub id.
            vae: An autoencoder to use instead of the model's own, see `load_checkpoint`.
            device: Torch device.
            dtype: Dtype of the weights; attention is always float32.
            compile: Compile the model with torch.compile, in the first pass. It pays on a GPU and for many images.
            batch_size: Images per pass of the model.
            naming: Whether images come with names. Unless `method` says otherwise, segments are then named by the CLIP
                if one is given, else by cross-attention.
            clip: A local folder or hub id of a CLIP, see `load_clip`.
            words: Further words for a name, by the name, for the CLIP.
            affinity: A file that `diffseg fit` wrote: of heads for stage affinity, or of features for stage walk.
            references: The folder that `diffseg fit references` wrote, for the stage references.
            stages: The stages in order, instead of the setting `method`: names, or objects of your own with the
                interface of `diffseg.method.stages.Stage`.
            levels: Whether results have levels (`diffseg.levels`), at which `recut` gives other label maps.
            features: Whether results have features of the image and of its segments, from which references of names
                are learned.
            quality: Whether results have `within_rho` and `between_rho`, a score of quality without ground truth, which
                costs one more pass of the UNet for each of `variants`.
            preset: Settings to start from.
            settings: Fields of SegmenterSettings and of its components, by name.

        Raises:
            CheckpointError: The checkpoint cannot be used. This is a ValueError.
            ValueError: A setting is invalid.
        """
        resolved = settings_of(preset, **settings)
        checkpoint = load_checkpoint(
            model,
            revision=revision,
            vae=vae,
            device=device,
            dtype=getattr(torch, dtype),
            text=(
                needs_text_encoders(resolved, naming=naming and clip is None and references is None)
                if stages is None
                else any(stage == "cross" or "cross_attention" in getattr(stage, "needs", ()) for stage in stages)
            ),
        )
        return cls(
            Backbone(checkpoint, compile=compile),
            resolved,
            batch_size=batch_size,
            naming=naming,
            clip=None if clip is None else load_clip(clip, device=device, words=words),
            affinity=None if affinity is None else read_state(Path(affinity).read_bytes(), str(affinity)),
            references=None if references is None else load_references(references),
            stages=stages,
            levels=levels,
            features=features,
            quality=quality,
        )

    def __call__(
        self, images: ImageLike | list[ImageLike] | tuple[ImageLike, ...], names: Sequence[str] | None = None
    ) -> Any:
        """Label an image or a list of images.

        Args:
            images: A path, bytes, a PIL image or uint8 [H, W, 3], or a list of these.
            names: Names that segments may get, if a stage of the method names them.

        Returns:
            A Segmentation, or a list of them for a list of images.

        Raises:
            ImageError: An image cannot be decoded.
            NonFiniteError: The model overflows on an image.
        """
        is_single = not isinstance(images, (list, tuple))
        image_list = cast(Sequence[ImageLike], [images] if is_single else images)
        prompt = None if names is None else prompt_of_names(names)
        segmentations = []
        for start in range(0, len(image_list), self.batch_size):
            inputs = [self.prepare(as_rgb(image), prompt) for image in image_list[start : start + self.batch_size]]
            for result in self.launch(inputs).results():
                if isinstance(result, Exception):
                    raise result
                segmentations.append(result)
        return segmentations[0] if is_single else segmentations

    def prepare(self, image: np.ndarray, prompt: Prompt | None = None) -> ModelInput:
        """Fit a uint8 [H, W, 3] image into the model's square, and attach its prompt. Threads may call this at once.

        With references, an image without a prompt may have any of their names.
        """
        settings = self.settings.model_input
        sides = [self.resolution, 2 * self.resolution] if self.settings.attention.crops else [self.resolution]
        fitted = [
            fit_image(image, side, settings.fit, antialias=settings.antialias, on_device=self.resizes_on_device)
            for side in sides
        ]
        detail = fitted[1].pixels if len(fitted) > 1 else None
        return dataclasses.replace(fitted[0], detail=detail, prompt=prompt or self.default_prompt)

    def launch(self, inputs: Sequence[ModelInput], step: Step = no_step) -> PendingBatch:
        """Send up to `batch_size` prepared images through the model and the method.

        On a GPU this waits for the device at most once, to learn the number of proposals, and the results are copied to
        the host while the next batch is prepared.

        Args:
            inputs: Prepared images.
            step: Context manager factory that is called with the name of each step, to time it.

        Returns:
            The batch, whose `results()` returns the label maps, with a NonFiniteError for an image that overflows.
        """
        return self.from_attention(self.attention_of(inputs, step), inputs, step)

    def launch_each(
        self, batches: Iterable[Sequence[ModelInput]], step: Step = no_step
    ) -> Iterator[PendingBatch | None]:
        """Launch batches in order, and yield each one as soon as it is launched; an empty batch gives None.

        On a GPU, the pass of the model for the next batch is sent before the host waits for the number of proposals of
        a batch, so that the device always has work. This needs the memory of one more batch's attention.

        Args:
            batches: Prepared images, up to `batch_size` in each batch.
            step: Context manager factory that is called with the name of each step, to time it.
        """
        remaining = iter(batches)

        def record_next() -> tuple[Sequence[ModelInput], Signals | None] | None:
            inputs = next(remaining, None)
            return None if inputs is None else (inputs, self.attention_of(inputs, step) if inputs else None)

        recorded = record_next()
        while recorded is not None:
            inputs, signals = recorded
            del recorded  # the attention is freed before that of the batch after the next one is allocated
            following, pending = Once(record_next), None
            if signals is not None:
                with work_in_wait(following.run):
                    pending = self.from_attention(signals, inputs, step)
            del signals
            yield pending
            recorded = following.result()

    def attention_of(self, inputs: Sequence[ModelInput], step: Step = no_step) -> Signals:
        """Return the attention of up to `batch_size` prepared images, and the other signals that the method needs."""
        if not 0 < len(inputs) <= self.batch_size:
            raise ValueError(f"{len(inputs)} images: expected 1 to {self.batch_size}")
        if self.needs & {"cross_attention", "clip"} and any(model_input.prompt is None for model_input in inputs):
            raise ValueError(f"method {','.join(self.method)} names segments: it needs names for each image")
        return self.recorder.record(inputs, self.batch_size, step)

    @torch.inference_mode()
    def from_attention(self, signals: Signals, inputs: Sequence[ModelInput], step: Step = no_step) -> PendingBatch:
        """Run the stages of the method on what `attention_of` returned for the same images."""
        # On a CPU each image has as many proposals as it needs; on other devices as many as the image with the most.
        images_at_once = 1 if signals.self_attention.device.type == "cpu" else self.batch_size
        decisions: list[Decision] = []
        leaves: list[LeafSignals | None] = []
        features: list[torch.Tensor] = []
        for start in range(0, len(inputs), images_at_once):
            part = signals.of_images(start, start + images_at_once)
            scores = run_stages(self.stages, part, step)
            if part.features is not None:
                features += part.features
            leaves += [scores.leaves and scores.leaves.of_image(image) for image in range(len(scores.maps))]
            segments = classes_to_segments(scores, self.settings.segment_names)
            with step("decide"):
                decisions += decide_segments(segments, inputs[start : start + images_at_once], self.settings)
        return PendingBatch(
            inputs=inputs,
            decisions=decisions,
            finite=signals.finite,
            min_area=self.settings.min_area,
            merge_names=self.settings.segment_names.merge_names,
            leaves=[of_image for of_image in leaves if of_image is not None],
            threshold=calibrated_threshold(self.tau[-1], self.settings.proposals.distance),
            features=features,
            naming=self.naming,
            response=signals.variants if self.quality else None,
        )


def decide_segments(scores: Scores, inputs: Sequence[ModelInput], settings: SegmenterSettings) -> list[Decision]:
    """Decide each image; `scores` may have more images than `inputs`, which are padding."""
    grid = (scores.maps.shape[2], scores.maps.shape[3])
    regions = [Region(image.region_size, image.content_on_grid(grid)) for image in inputs]
    names = None
    if scores.names is not None and scores.name_scores is not None:
        names = scores.names, scores.name_scores
    return decide_images(scores.maps, regions, keep_margins=settings.min_area > 0, names=names)


def as_rgb(image: ImageLike) -> np.ndarray:
    """Return the pixels of an image, uint8 [H, W, 3]. Raises ImageError, or ValueError for another kind of array."""
    if not isinstance(image, np.ndarray):
        return decode_image(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image array of {image.dtype} {list(image.shape)}: expected uint8 [height, width, 3]")
    return image
