"""`label_shard`: the one function that turns a shard into a committed label shard. It imports no Ray.

The steps are: read, decode, one pass of the model for each batch, rows in input order, files, commit record. The
caller's thread does only the passes and writes the files; threads read and decode the next samples, and encode the
masks of the last batch.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Protocol

import numpy as np

from diffseg import ImageError, Segmentation
from diffseg.images.canvas import ModelInput
from diffseg.images.decode import decode_image
from diffseg.model.backbone import Step
from diffseg.model.text import Prompt
from diffseg.pending import PendingBatch
from pipeline.batches import batches_of, model_errors
from pipeline.output.commit import Commit
from pipeline.output.fence import Fence
from pipeline.output.portable_image import portable_image
from pipeline.output.rows import Row, failed_row, labelled_row
from pipeline.output.write_shard import RowAndImage, write_shard
from pipeline.prefetch import prefetch, prefetch_map
from pipeline.readers.names import NameReader, NamesError
from pipeline.readers.read import read_shard
from pipeline.readers.samples import Sample, Shard
from pipeline.readers.versions import ReadCheck
from pipeline.settings import LabelSettings
from pipeline.storage import Storage
from pipeline.timing import StepTimer

Prepare = Callable[[np.ndarray, Prompt | None], ModelInput]
"""Fits pixels, uint8 [H, W, 3], to the model's square and attaches the prompt."""

Outcome = tuple[Sample, Segmentation | Row]
"""A sample with its segmentation, or with the row that says why it has none."""


class ImageSegmenter(Protocol):
    """What labels batches of images: `diffseg.Segmenter`, or a trained network in its place.

    Attributes:
        batch_size: Images in one pass of the model.
        resolution: Side of the model's square in pixels.
        needs: Signals of Stable Diffusion that the method needs.
    """

    batch_size: int
    resolution: int
    needs: frozenset[str]

    def prepare(self, image: np.ndarray, prompt: Prompt | None = None) -> ModelInput:
        """Fit a uint8 [H, W, 3] image into the model's square, and attach its names. Threads may call this at once."""
        ...

    def launch_each(self, batches: Iterable[Sequence[ModelInput]], step: Step = ...) -> Iterator[PendingBatch | None]:
        """Send batches of up to `batch_size` prepared images through the model, in order.

        On a GPU this does not wait for the results. An empty batch gives None.
        """
        ...


class Decoded(NamedTuple):
    """A sample with its prepared image, or with the row that says why it has none."""

    sample: Sample
    model_input: ModelInput | None
    row: Row | None


def label_shard(
    shard: Shard,
    *,
    segmenter: ImageSegmenter,
    settings: LabelSettings,
    metadata: Mapping[str, Any],
    out: Storage,
    source: Storage,
    attempt: int = 1,
    names: NameReader | None = None,
    threads: int = 2,
    on_sample: Callable[[], None] = lambda: None,
    fence: Fence | None = None,
) -> Commit:
    """Label every sample of a shard and commit it. Doing so again writes the same bytes under the same names.

    Args:
        segmenter: Labels a batch of images.
        settings: The settings of the run.
        metadata: Written into the Parquet footer; its "fingerprint" also goes into the commit record.
        out: OUT.
        source: Options for the store of the shard.
        names: Reads the names of each sample; None if segments are not named.
        threads: Threads that decode images ahead of the model, and threads that encode masks behind it.
        on_sample: Called once for each row.
        fence: What run.json must say when the shard is committed; None if no other run can use OUT.

    Returns:
        The record that was written. Its inputs are those that were really read.

    Raises:
        ShardError: The shard itself cannot be read.
        SourceChanged: The shard changed while it was read.
        RunTakenOver: Another run has taken over OUT.
        OSError: A store fails.
    """
    step, notes = StepTimer(), list[str]()
    check = ReadCheck(shard, source)
    with closing(_rows(shard, segmenter, settings, source, names, threads, step, notes)) as rows:
        return write_shard(
            shard.name,
            rows,
            out=out,
            formats=settings.formats,
            metadata=metadata,
            inputs=check.shard.digest(),
            attempt=attempt,
            step=step,
            fence=fence,
            batch_size=segmenter.batch_size,
            levels=settings.levels,
            features=settings.features,
            quality=settings.quality,
            notes=notes,
            on_sample=on_sample,
            before_commit=check.finish,
        )


def _rows(
    shard: Shard,
    segmenter: ImageSegmenter,
    settings: LabelSettings,
    source: Storage,
    names: NameReader | None,
    threads: int,
    step: StepTimer,
    notes: list[str],
) -> Generator[RowAndImage, None, None]:
    """Yield a row for each sample of the shard, through the stages below."""
    ahead = segmenter.batch_size + threads
    prompt_of = None if names is None else names.with_prompt
    # Every stage is closed here, and no local variable refers to the reader. An exception that the caller keeps would
    # otherwise keep the stages and their threads.
    with (
        closing(
            prefetch(
                read_shard(shard, source, image_field=settings.image_field, step=step, on_note=notes.append),
                ahead=ahead,
            )
        ) as samples,
        closing(
            decode_samples(
                samples,
                shard.name,
                settings.max_pixels,
                segmenter.prepare,
                step,
                threads=threads,
                ahead=ahead,
                prompt_of=prompt_of,
            )
        ) as decoded,
        closing(label_samples(decoded, segmenter, step, shard.name)) as outcomes,
        closing(
            encode_rows(
                outcomes,
                shard.name,
                step,
                threads=threads,
                ahead=max(segmenter.batch_size, threads),
                names=settings.naming.names,
                include_images=settings.include_image,
            )
        ) as rows,
    ):
        yield from rows


def decode_samples(
    samples: Iterable[Sample],
    shard: str,
    max_pixels: int,
    prepare: Prepare,
    step: StepTimer,
    *,
    threads: int,
    ahead: int,
    prompt_of: Callable[[Sample], tuple[Sample, Prompt]] | None = None,
) -> Generator[Decoded, None, None]:
    """Decode and resize images in threads, in the order of the input.

    Args:
        shard: Name of the samples' shard.
        max_pixels: Largest image that is decoded.
        prepare: Fits an image to the model's square.
        step: Times the steps "decode" and "resize".
        threads: Number of threads.
        ahead: Number of samples that may be decoded ahead of the consumer.
        prompt_of: Returns a sample, with what was noted about its names, and its prompt, or raises NamesError; None if
            segments are not named.
    """

    def decode(sample: Sample) -> Decoded:
        if sample.status != "ok" or sample.image is None:
            return Decoded(sample, None, failed_row(sample, shard, sample.status, sample.error))
        image = sample.image
        try:
            sample, prompt = (sample, None) if prompt_of is None else prompt_of(sample)
            with step("decode"):
                pixels = decode_image(image, max_pixels=max_pixels)
            with step("resize"):
                return Decoded(sample, prepare(pixels, prompt), None)
        except (ImageError, NamesError) as error:
            status = error.status if isinstance(error, ImageError) else "bad_names"
            row = failed_row(sample, shard, status, str(error))
            return Decoded(dataclasses.replace(sample, image=None), None, row)  # frees the bytes before the batch

    return prefetch_map(decode, samples, threads=threads, ahead=ahead)


def label_samples(
    decoded: Iterable[Decoded], segmenter: ImageSegmenter, step: StepTimer, shard: str
) -> Generator[Outcome, None, None]:
    """Label batches of images and yield the outcomes in input order.

    On a GPU the next batches are launched before the results of a batch are awaited. If a sample cannot be read, the
    error is raised after the outcomes of the samples before it.
    """
    drawn: deque[list[Decoded]] = deque()
    in_flight: deque[tuple[list[Decoded], PendingBatch | None]] = deque()
    failures: list[Exception] = []

    def inputs_of_batches() -> Iterator[list[ModelInput]]:
        try:
            for batch in batches_of(decoded, segmenter.batch_size, needs_model=_has_image):
                drawn.append(batch)
                yield [item.model_input for item in batch if item.model_input is not None]
        except Exception as error:  # it is not an error of the model, which draws the batches
            failures.append(error)

    for pending in _launch_each(segmenter, inputs_of_batches(), step):
        in_flight.append((drawn.popleft(), pending))
        if len(in_flight) > 1:
            yield from _outcomes(*in_flight.popleft(), shard, step)
    while in_flight:
        yield from _outcomes(*in_flight.popleft(), shard, step)
    if failures:
        raise failures[0]


def _launch_each(
    segmenter: ImageSegmenter, batches: Iterable[Sequence[ModelInput]], step: StepTimer
) -> Iterator[PendingBatch | None]:
    with model_errors():
        yield from segmenter.launch_each(batches, step)


def _has_image(decoded: Decoded) -> bool:
    return decoded.model_input is not None


def _outcomes(batch: list[Decoded], pending: PendingBatch | None, shard: str, step: StepTimer) -> Iterator[Outcome]:
    """Wait for the results of a batch. An image whose attention is not finite gets a failed row."""
    with step("results"):
        results = iter(pending.results() if pending is not None else ())
    for sample, model_input, row in batch:
        outcome = row if model_input is None else next(results)
        if model_input is not None and isinstance(outcome, Exception):
            outcome = failed_row(sample, shard, "nonfinite", str(outcome), size=model_input.size)
        assert isinstance(outcome, Segmentation | Row)
        yield sample, outcome


def encode_rows(
    outcomes: Iterable[Outcome],
    shard: str,
    step: StepTimer,
    *,
    threads: int,
    ahead: int,
    names: Sequence[str] = (),
    include_images: bool = False,
) -> Generator[RowAndImage, None, None]:
    """Encode masks in threads, at most `ahead` behind the model, and yield the rows in the order of the outcomes.

    With `include_images`, a row with a mask comes with its source image as a JPEG that shows the pixels of the mask.
    """

    def encode(item: Outcome) -> RowAndImage:
        sample, outcome = item
        if isinstance(outcome, Row):
            return outcome, None
        with step("write"):
            row = labelled_row(sample, shard, outcome, names)
            if not include_images or sample.image is None:
                return row, None
            data, extension = portable_image(sample.image, outcome.labels.shape, jpeg=True)
            return row, (extension, data)

    return prefetch_map(encode, outcomes, threads=threads, ahead=ahead)
