"""Part whole: the pass of the bare model, and our pass from images to label maps."""

from __future__ import annotations

import copy
import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffseg import Segmenter
from diffseg.devices import fastest_memory_format
from diffseg.images.device_resize import squares_of
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import Checkpoint
from diffseg.settings import settings_of
from jobs.benchmarks.measure import Comparison, alternate, wait_for_devices
from jobs.benchmarks.models import SD15, dtype_name, parameters, small_autoencoder
from pipeline.timing import StepTimer


def measure_whole(
    checkpoint: Checkpoint,
    images: Sequence[np.ndarray],
    *,
    batch_size: int,
    repetitions: int,
    resolution: int | None = None,
) -> Comparison:
    """Measure one batch of images through the bare model and through ours, in turns.

    Variants:
        bare: VAE encoding and the whole UNet with fused attention, without recording, of a batch that is already
            resized, on the same weights.
        bare, as loaded: The same in the memory layout in which diffusers loads weights, where ours is another one.
        ours: Resizing, encoding, recording, aggregation, merging and decision, up to label maps at the size of the
            images.
        ours, small VAE: The same with an encoder of the size of TAESD; for Stable Diffusion 1.5 only.

    Args:
        checkpoint: The model.
        images: The images, uint8 [H, W, 3] each, which are repeated to fill the batch.
        batch_size: Images per batch.
        repetitions: The number of measured turns.
        resolution: Side of the model's square in pixels; None for the checkpoint's own.
    """
    segmenter = Segmenter(Backbone(checkpoint), settings_of(resolution=resolution), batch_size=batch_size)
    batch = [images[i % len(images)] for i in range(batch_size)]
    device = checkpoint.vae.device
    pixels = squares_of([segmenter.prepare(image) for image in batch], device)
    variants: dict[str, Callable[[], object]] = {
        "bare": lambda: bare_pass(checkpoint, segmenter.timestep, pixels),
        "ours": lambda: segmenter([*batch]),
    }
    if fastest_memory_format(device) != torch.contiguous_format:
        as_loaded = _contiguous(checkpoint)
        variants["bare, as loaded"] = lambda: bare_pass(as_loaded, segmenter.timestep, pixels)
    if checkpoint.name == SD15:
        small = dataclasses.replace(checkpoint, vae=small_autoencoder(checkpoint))
        with_small = Segmenter(Backbone(small), segmenter.settings, batch_size=batch_size)
        variants["ours, small VAE"] = lambda: with_small([*batch])
    seconds = alternate(variants, repetitions)
    flop = flop_of(lambda: bare_pass(checkpoint, segmenter.timestep, pixels)) / batch_size
    rate = product_rate(checkpoint.unet.dtype, device)
    bare, ours = (statistics.median(seconds[variant]) / batch_size for variant in ("bare", "ours"))
    return Comparison(
        part="whole",
        case=f"{checkpoint.name}, {segmenter.resolution} px, {dtype_name(checkpoint)}, batch {batch_size}",
        seconds=seconds,
        baseline="bare",
        per=batch_size,
        steps=step_times(segmenter, batch, repetitions),
        notes={
            "parameters": parameters(checkpoint),
            "gflop of the bare pass": round(flop / 1e9, 1),
            "gflop/s of large products": round(rate / 1e9),
            "share of that in the bare pass": round(flop / bare / rate, 2),
            "share of that in ours": round(flop / ours / rate, 2),
            "segments": [len(result.segments) for result in segmenter([*batch])],
        }
        | ({"peak MiB on the GPU": _peak(segmenter, batch) // 2**20} if device.type == "cuda" else {}),
    )


def _peak(segmenter: Segmenter, batch: Sequence[np.ndarray]) -> int:
    """Return the most memory in bytes that tensors have on the GPU while a batch is labelled, weights included."""
    torch.cuda.reset_peak_memory_stats()
    segmenter([*batch])
    return torch.cuda.max_memory_allocated()


@torch.inference_mode()
def bare_pass(checkpoint: Checkpoint, timestep: int, pixels: torch.Tensor) -> torch.Tensor:
    """Predict the noise in images as a plain user of diffusers does.

    Args:
        checkpoint: The model.
        timestep: The step of the diffusion process, 0 to 999.
        pixels: The images, [B, 3, S, S], values -1 to 1.

    Returns:
        The predicted noise, [B, 4, h, w].
    """
    backbone = Backbone(checkpoint)
    inputs = backbone.inputs(backbone.latents(pixels), timestep, checkpoint.added)
    context = checkpoint.context.expand(len(pixels), -1, -1)
    return checkpoint.unet(inputs.latents, inputs.timesteps, encoder_hidden_states=context, **inputs.options).sample


def flop_of(run: Callable[[], object]) -> int:
    """Count the floating-point operations of matrix products and convolutions; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        run()
    return counter.get_total_flops()


@functools.cache
def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Measure the operations per second of large matrix products, the practical peak for a model.

    Args:
        dtype: The type of the model's weights.
        device: Their device.
    """
    on_cpu = 1024 if dtype == torch.float32 else 256  # where half precision may take seconds
    side = on_cpu if device.type == "cpu" else 8192
    # Random values, because a GPU multiplies ones faster than its limit of power allows for other values.
    left, right = torch.randn(2, side, side, dtype=dtype, device=device)
    return 2 * side**3 / min(alternate({"product": lambda: left @ right}, 5)["product"])


def _contiguous(checkpoint: Checkpoint) -> Checkpoint:
    """Return a copy of a checkpoint in the memory layout in which diffusers loads weights."""
    vae, unet = (
        copy.deepcopy(part).to(memory_format=torch.contiguous_format) for part in (checkpoint.vae, checkpoint.unet)
    )
    return dataclasses.replace(checkpoint, vae=vae, unet=unet)


def step_times(segmenter: Segmenter, images: Sequence[np.ndarray], repetitions: int) -> dict[str, float]:
    """Return the median seconds per image of each step of labelling a batch, each with a wait for the GPU."""
    batches = []
    for _ in range(repetitions):
        step = _WaitingTimer()
        with step("resize"):
            inputs = [segmenter.prepare(image) for image in images]
        pending = segmenter.launch(inputs, step)
        with step("results"):
            pending.results()
        batches.append(step.seconds)
    return {name: statistics.median(batch[name] for batch in batches) / len(images) for name in batches[0]}


class _WaitingTimer(StepTimer):
    """A stopwatch that waits for the GPU at both ends of a step, so that a step's own work counts for it."""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wait_for_devices()
        with super().__call__(name):
            yield
            wait_for_devices()
