"""Part generate: images from prompts, beside the same images with recorded attention and with label maps."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from diffseg.generation.generator import Generator
from diffseg.generation.request import GenerationRequest
from diffseg.generation.settings import GenerationSettings
from diffseg.model.backbone import Backbone
from diffseg.model.checkpoint import Checkpoint
from jobs.benchmarks.measure import Comparison, alternate
from jobs.benchmarks.models import dtype_name

CLASSES = ("leopard", "grass", "sky")
PROMPT = "a photo of a leopard on grass under the sky"
ALONE, RECORDED, LABELLED = "images alone", "images with recorded attention", "images with label maps"


def measure_generation(
    checkpoint: Checkpoint, *, steps: int, size: int | None, batch_size: int, repetitions: int
) -> Comparison:
    """Measure one batch of images in turns.

    Variants:
        images alone: Sampling with guidance and decoding, without recording.
        images with recorded attention: The same with three classes recorded in every step, and self-attention in one.
        images with label maps: All that `diffseg generate` does before it encodes a row.

    Args:
        checkpoint: The model, with text encoders and decoder.
        steps: Sampling steps.
        size: Side of the images in pixels; None for the checkpoint's own.
        batch_size: Images per batch.
        repetitions: The number of measured turns.
    """
    generator = Generator(
        Backbone(checkpoint), GenerationSettings(steps=steps, size=size, scheduler="ddim"), batch_size=batch_size
    )
    requests = [GenerationRequest(prompt=PROMPT, classes=CLASSES, seed=seed) for seed in range(batch_size)]
    variants: dict[str, Callable[[], object]] = {
        ALONE: lambda: generator.backbone.decode(generator.sample(requests, record=False).latents),
        RECORDED: lambda: generator.backbone.decode(generator.sample(requests).latents),
        LABELLED: lambda: generator.generate(requests),
    }
    seconds = alternate(variants, repetitions)
    per_image, alone = (statistics.median(seconds[variant]) / batch_size for variant in (LABELLED, ALONE))
    return Comparison(
        part="generate",
        case=f"{checkpoint.name}, {generator.side} px, {dtype_name(checkpoint)}, batch {batch_size}, {steps} steps",
        seconds=seconds,
        baseline=ALONE,
        per=batch_size,
        notes={
            "images/s": round(1 / per_image, 3),
            "seconds per step": round(alone / steps, 4),
            "days for 40,000 images": round(40_000 * per_image / 86_400, 2),
        },
    )
