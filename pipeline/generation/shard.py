"""`generate_shard`: the one function that turns a shard of requests into a committed label shard. It imports no Ray.

It does for prompts what `pipeline.label.label_shard` does for images, and writes the same label shards and records.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

import numpy as np
from PIL import Image

from diffseg.generation.generator import GeneratedImage
from diffseg.generation.request import GenerationRequest
from diffseg.model.backbone import Step
from diffseg.pending import NonFiniteError
from pipeline.batches import batches_of, model_errors
from pipeline.generation.requests import Request, requests_of
from pipeline.generation.settings import GenerateSettings, ImageFormat
from pipeline.output.commit import Commit
from pipeline.output.fence import Fence
from pipeline.output.portable_image import JPEG_QUALITY
from pipeline.output.rows import failed_row, float32, labelled_row
from pipeline.output.write_shard import RowAndImage, write_shard
from pipeline.prefetch import prefetch_map
from pipeline.readers.samples import Sample, Shard, meta_text
from pipeline.storage import Storage
from pipeline.timing import StepTimer

EXTENSIONS: Mapping[ImageFormat, str] = {"png": "png", "webp": "webp", "jpeg": "jpg"}
PNG_LEVEL = 6
WEBP_EFFORT = 4
"""Effort of WebP to make lossless files small, 0 to 6."""


class ImageGenerator(Protocol):
    """What generates images: `diffseg.generation.generator.Generator`.

    Attributes:
        batch_size: Images in one pass of the model.
    """

    batch_size: int

    def generate(
        self, requests: Sequence[GenerationRequest], step: Step = ...
    ) -> list[GeneratedImage | NonFiniteError]:
        """Generate an image with its label map for each request, or return an error where the model overflows."""
        ...


Outcome = tuple[Request, GeneratedImage | NonFiniteError | None]
"""A request with its image, with the error of the model, or with None if its entry cannot be used."""


def generate_shard(
    shard: Shard,
    *,
    generator: ImageGenerator,
    settings: GenerateSettings,
    metadata: Mapping[str, Any],
    out: Storage,
    attempt: int = 1,
    threads: int = 2,
    on_sample: Callable[[], None] = lambda: None,
    fence: Fence | None = None,
) -> Commit:
    """Generate the images of a shard and commit their rows. Doing so again writes the same bytes under the same names.

    Args:
        shard: A shard of requests.
        generator: Generates a batch of images.
        settings: The settings of the run.
        metadata: Written into the Parquet footer; its "fingerprint" also goes into the commit record.
        out: OUT.
        attempt: Number of the attempt, from 1.
        threads: Threads that encode images and masks while the next batch is generated.
        on_sample: Called once for each row.
        fence: What run.json must say when the shard is committed; None if no other run can use OUT.

    Returns:
        The record that was written.

    Raises:
        ModelFailed: The model failed at a batch.
        RunTakenOver: Another run has taken over OUT.
        OSError: A store fails.
    """
    step = StepTimer()
    with closing(_rows(shard, generator, settings, threads, step)) as rows:
        return write_shard(
            shard.name,
            rows,
            out=out,
            formats=settings.formats,
            metadata=metadata,
            inputs=shard.digest(),
            attempt=attempt,
            step=step,
            fence=fence,
            batch_size=generator.batch_size,
            generated=True,
            on_sample=on_sample,
        )


def _rows(
    shard: Shard, generator: ImageGenerator, settings: GenerateSettings, threads: int, step: StepTimer
) -> Generator[RowAndImage, None, None]:
    """Yield a row for each request of the shard, in their order; images are encoded in threads."""

    def encode(outcome: Outcome) -> RowAndImage:
        with step("write"):
            return request_row(*outcome, shard=shard.name, settings=settings)

    outcomes = _generated(requests_of(shard), generator, settings.seed, step)
    return prefetch_map(encode, outcomes, threads=threads, ahead=max(generator.batch_size, threads))


def _generated(
    requests: Iterable[Request], generator: ImageGenerator, run_seed: int, step: StepTimer
) -> Iterator[Outcome]:
    """Yield the outcome of each request in order."""
    for batch in batches_of(requests, generator.batch_size, needs_model=_is_usable):
        wanted = [
            GenerationRequest(prompt=each.entry.prompt, classes=each.entry.classes, seed=each.seed(run_seed))
            for each in filter(_is_usable, batch)
        ]
        with model_errors():
            images = iter(generator.generate(wanted, step) if wanted else ())
        for request in batch:
            yield request, next(images) if _is_usable(request) else None


def _is_usable(request: Request) -> bool:
    return request.entry.status == "ok"


def request_row(
    request: Request, generated: GeneratedImage | NonFiniteError | None, *, shard: str, settings: GenerateSettings
) -> RowAndImage:
    """Return the row of a request, and its image for the tar of the shard.

    Args:
        request: The request.
        generated: Its image, the error of the model, or None if its entry cannot be used.
        shard: Name of the shard.
        settings: The settings of the run.
    """
    entry, generation = request.entry, settings.generation
    # As a field of the sample, the prompt is shown by the report, and can be a caption for `fit references`.
    sample = Sample(index=request.index, key=request.key, image=None, meta=meta_text({"prompt": entry.prompt}))
    asked: dict[str, Any] = {
        "prompt": entry.prompt,
        "generation_seed": request.seed(settings.seed),
        "steps": generation.steps,
        "guidance": float32(generation.guidance),
        "classes": entry.classes,
    }
    if generated is None:
        return dataclasses.replace(failed_row(sample, shard, entry.status, entry.error), **asked), None
    if isinstance(generated, NonFiniteError):
        return dataclasses.replace(failed_row(sample, shard, "nonfinite", str(generated)), **asked), None
    image = encode_image(generated.image, settings.image_format)
    row = dataclasses.replace(
        labelled_row(sample, shard, generated.segmentation, settings.naming.names),
        **asked,
        image=image,
        threshold=_by_class(generated.threshold, entry.classes),
        agree_iou=_by_class(generated.agree_iou, entry.classes),
    )
    return row, (EXTENSIONS[settings.image_format], image)


def _by_class(values: Mapping[str, float], classes: Sequence[str]) -> tuple[float, ...]:
    """Return the value of each class, or () for a method that gives segments no names."""
    return tuple(float32(values[name]) for name in classes) if values else ()


def encode_image(pixels: np.ndarray, image_format: ImageFormat) -> bytes:
    """Encode an image, uint8 [H, W, 3]. PNG and WebP are lossless."""
    options: Mapping[ImageFormat, dict[str, Any]] = {
        "png": {"compress_level": PNG_LEVEL},
        "webp": {"lossless": True, "method": WEBP_EFFORT},
        "jpeg": {"quality": JPEG_QUALITY},
    }
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format.upper(), **options[image_format])
    return buffer.getvalue()
