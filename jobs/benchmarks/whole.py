"""(a) and (b): the bare model's pass, and ours from images to label maps."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffseg import Segmenter
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import Checkpoint
from diffseg.settings import SegmenterSettings
from jobs.benchmarks.measure import Comparison, alternate
from jobs.benchmarks.models import SD15, parameters, small_autoencoder
from pipeline.timing import StepTimer


def measure_whole(
    checkpoint: Checkpoint, images: Sequence[np.ndarray], *, batch_size: int, repetitions: int
) -> Comparison:
    """One batch of images, uint8 [H, W, 3] each, through `bare` and through `ours` in turns.

    bare: VAE encode and the whole UNet with fused attention, nothing recorded, of a batch that is resized already, on
    the same weights. bare, as loaded: the same with the memory layout that diffusers loads weights in.
    ours: resizing, encoding, recording, aggregating, merging and deciding, up to label maps at the images' sizes.
    """
    segmenter = Segmenter(Backbone(checkpoint), SegmenterSettings(), batch_size=batch_size)
    batch = [images[i % len(images)] for i in range(batch_size)]
    pixels = torch.stack([segmenter.prepare(image).pixels for image in batch])
    timer = Steps()
    as_loaded = _contiguous(checkpoint)
    variants: dict[str, Callable[[], object]] = {
        "bare": lambda: bare_pass(checkpoint, segmenter.timestep, pixels),
        "ours": lambda: timer.labelled(segmenter, batch),
        "bare, as loaded": lambda: bare_pass(as_loaded, segmenter.timestep, pixels),
    }
    if checkpoint.name == SD15:
        small = dataclasses.replace(checkpoint, vae=small_autoencoder(checkpoint))
        with_small = Segmenter(Backbone(small), segmenter.settings, batch_size=batch_size)
        variants["ours, small VAE"] = lambda: with_small([*batch])
    seconds = alternate(variants, repetitions)
    dtype = str(checkpoint.unet.dtype).removeprefix("torch.")
    flop = flop_of(lambda: bare_pass(checkpoint, segmenter.timestep, pixels)) / batch_size
    rate = product_rate(checkpoint.unet)
    bare = statistics.median(seconds["bare"]) / batch_size
    return Comparison(
        part="whole",
        case=f"{checkpoint.name}, {segmenter.resolution} px, {dtype}, batch {batch_size}",
        seconds=seconds,
        baseline="bare",
        per=batch_size,
        steps=timer.medians(repetitions, batch_size),
        notes={
            "parameters": parameters(checkpoint),
            "gflop of the bare pass": round(flop / 1e9, 1),
            "gflop/s of large products": round(rate / 1e9),
            "share of that in the bare pass": round(flop / bare / rate, 2),
            "segments": [len(result.segments) for result in segmenter([*batch])],
        },
    )


@torch.inference_mode()
def bare_pass(checkpoint: Checkpoint, timestep: int, pixels: torch.Tensor) -> torch.Tensor:
    """Noise [B, 4, h, w] that the model predicts for pixels [B, 3, S, S], as a plain user of diffusers has it."""
    batch = len(pixels)
    latents = Backbone(checkpoint).latents(pixels)
    added = {name: value.expand(batch, -1) for name, value in checkpoint.added.items()}
    context = checkpoint.context.expand(batch, -1, -1)
    return checkpoint.unet(latents, timestep, encoder_hidden_states=context, added_cond_kwargs=added or None).sample


def flop_of(run: Callable[[], object]) -> int:
    """Floating-point operations, a multiplication and its addition as two, of products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def product_rate(model: torch.nn.Module) -> float:
    """Operations a second of large matrix products in the type and on the device of a model: its practical peak."""
    weight = next(model.parameters())
    side = 2048 if weight.device.type == "cpu" else 8192
    left, right = torch.ones(2, side, side, dtype=weight.dtype, device=weight.device)
    return 2 * side**3 / min(alternate({"product": lambda: left @ right}, 5)["product"])


def _contiguous(checkpoint: Checkpoint) -> Checkpoint:
    vae, unet = (
        copy.deepcopy(part).to(memory_format=torch.contiguous_format) for part in (checkpoint.vae, checkpoint.unet)
    )
    return dataclasses.replace(checkpoint, vae=vae, unet=unet)


class Steps:
    """Seconds of the steps of each repetition."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, float]] = []

    def labelled(self, segmenter: Segmenter, images: Sequence[np.ndarray]) -> None:
        """One batch from images to label maps."""
        step = StepTimer()
        with step("resize"):
            canvases = [segmenter.prepare(image) for image in images]
        launched = segmenter.launch(canvases, step)
        with step("results"):
            launched.results()
        self.rounds.append(dict(step.seconds))

    def medians(self, last: int, per: int) -> dict[str, float]:
        """Of the last rounds, seconds an image."""
        rounds = self.rounds[-last:]
        return {name: statistics.median(each[name] for each in rounds) / per for name in rounds[0]}
