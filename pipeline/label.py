"""`label_shard`: the one function that turns a shard into a committed label shard. It knows no Ray.

read → decode → batch → one pass → rows in input order → files → commit record. Only the pass and the files are the
caller's own work: the next samples are read and decoded, and the masks of the last batch encoded, in threads beside it.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from diffseg import ImageError, Segmentation, Segmenter
from diffseg.images.canvas import ModelInput
from diffseg.images.decode import decode_image
from diffseg.model.text import Prompt
from diffseg.pending import Launched
from pipeline.output.commit import Commit, write_commit
from pipeline.output.rows import Row, failed_row, labelled_row
from pipeline.output.writer import LabelShardWriter
from pipeline.prefetch import prefetch, prefetch_map
from pipeline.readers.names import NameReader, NamesError
from pipeline.readers.read import read_shard
from pipeline.readers.samples import Sample, Shard
from pipeline.settings import LabelSettings
from pipeline.storage import Storage
from pipeline.timing import StepTimer

DECODERS, ENCODERS = 2, 2
"""Threads that decode images ahead of the model, and encode masks behind it."""

Prepare = Callable[[np.ndarray, Prompt | None], ModelInput]
"""Pixels, uint8 [H, W, 3], and what is said of them, to the model's square."""

Decoded = tuple[Sample, ModelInput | None, Row | None]
"""A sample with either its image as the model takes it or the row that says why there is none."""

Outcome = tuple[Sample, Segmentation | Row]
"""A sample with either its label map or the row that says why there is none."""

JPEG, PNG, GIF, RIFF = b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF"


def label_shard(
    shard: Shard,
    *,
    segmenter: Segmenter,
    settings: LabelSettings,
    metadata: Mapping[str, Any],
    out: Storage,
    source: Storage,
    attempt: int = 1,
    names: NameReader | None = None,
    on_sample: Callable[[], None] = lambda: None,
) -> Commit:
    """Label every sample of a shard and commit; doing it again writes the same bytes to the same names.

    metadata: goes into the Parquet footer; its `fingerprint` into the commit record. source: how the shard's store is
    reached. names: what reads the names of each sample, where segments are named. on_sample: called once a row.
    Raises ShardError where the shard itself cannot be read, OSError where a store fails.
    """
    started, clock, step = time.time(), time.perf_counter(), StepTimer()
    counts: Counter[str] = Counter()
    with (
        LabelShardWriter(shard.name, formats=settings.formats, metadata=metadata) as writer,
        closing(_rows(shard, segmenter, settings, source, names, step)) as rows,
    ):
        for sample, row in rows:
            with step("write"):
                image = _image_member(sample) if settings.include_image and row.status == "ok" else None
                writer.add(row, image=image)
            counts[row.status] += 1
            on_sample()
        with step("write"):
            files = writer.publish(out)
    commit = Commit(
        shard=shard.name,
        state="done",
        fingerprint=metadata["fingerprint"],
        attempt=attempt,
        inputs=shard.digest(),
        rows=counts.total(),
        counts=dict(counts),
        files=files,
        seconds={name: round(s, 4) for name, s in step.seconds.items()}
        | {"total": round(time.perf_counter() - clock, 4)},
        started=started,
        finished=time.time(),
        worker=socket.gethostname(),
        batch_size=segmenter.batch_size,
    )
    write_commit(out, commit)
    return commit


def _rows(
    shard: Shard,
    segmenter: Segmenter,
    settings: LabelSettings,
    source: Storage,
    names: NameReader | None,
    step: StepTimer,
) -> Generator[tuple[Sample, Row], None, None]:
    ahead = segmenter.batch_size + DECODERS
    tell = None if names is None else lambda sample: names(sample).prompt(settings.naming.template)
    # Closed here, since an error that somebody holds would hold the stages before it, and their threads, as well.
    with (
        closing(
            prefetch(read_shard(shard, source, image_field=settings.image_field, step=step), ahead=ahead)
        ) as samples,
        closing(
            decode_ahead(samples, shard.name, settings.max_pixels, segmenter.prepare, step, ahead=ahead, tell=tell)
        ) as decoded,
        closing(label_samples(decoded, segmenter, step, shard.name)) as outcomes,
        closing(
            encode_ahead(outcomes, shard.name, step, ahead=segmenter.batch_size, names=settings.naming.names)
        ) as rows,
    ):
        yield from rows


def decode_ahead(
    samples: Iterable[Sample],
    shard: str,
    max_pixels: int,
    prepare: Prepare,
    step: StepTimer,
    *,
    ahead: int,
    tell: Callable[[Sample], Prompt] | None = None,
) -> Generator[Decoded, None, None]:
    """Decode and resize in threads, at most `ahead` samples in front of the consumer, in the order of the input.

    tell: gives what the model is told of a sample; raises NamesError.
    """

    def decode(sample: Sample) -> Decoded:
        if sample.status != "ok" or sample.image is None:
            return sample, None, failed_row(sample, shard, sample.status, sample.error)
        try:
            prompt = None if tell is None else tell(sample)
            with step("decode"):
                pixels = decode_image(sample.image, max_pixels=max_pixels)
            with step("resize"):
                return sample, prepare(pixels, prompt), None
        except (ImageError, NamesError) as error:
            status = error.status if isinstance(error, ImageError) else "bad_names"
            row = failed_row(sample, shard, status, str(error))
            return dataclasses.replace(sample, image=None), None, row  # its bytes need not wait with it for a batch

    return prefetch_map(decode, samples, threads=DECODERS, ahead=ahead)


def label_samples(
    decoded: Iterable[Decoded], segmenter: Segmenter, step: StepTimer, shard: str
) -> Generator[Outcome, None, None]:
    """Outcomes in input order. The next batch is sent to a GPU before the results of one are waited for."""
    under_way: deque[tuple[list[Decoded], Launched | None]] = deque()
    for batch in _batches(decoded, segmenter.batch_size):
        canvases = [canvas for _, canvas, _ in batch if canvas is not None]
        under_way.append((batch, segmenter.launch(canvases, step) if canvases else None))
        if len(under_way) > 1:
            yield from _outcomes(*under_way.popleft(), shard, step)
    while under_way:
        yield from _outcomes(*under_way.popleft(), shard, step)


def _batches(decoded: Iterable[Decoded], size: int) -> Iterator[list[Decoded]]:
    """As many decodable images as the model takes at once; what cannot be decoded waits for no others."""
    batch: list[Decoded] = []
    images = 0
    for item in decoded:
        batch.append(item)
        images += item[1] is not None
        if images in (0, size):
            yield batch
            batch, images = [], 0
    if batch:
        yield batch


def _outcomes(batch: list[Decoded], launched: Launched | None, shard: str, step: StepTimer) -> Iterator[Outcome]:
    with step("results"):
        results = iter(launched.results() if launched is not None else ())
    for sample, canvas, row in batch:
        outcome = row if canvas is None else next(results)
        if canvas is not None and isinstance(outcome, Exception):
            outcome = failed_row(sample, shard, "nonfinite", str(outcome), size=canvas.size)
        assert isinstance(outcome, Segmentation | Row)
        yield sample, outcome


def encode_ahead(
    outcomes: Iterable[Outcome], shard: str, step: StepTimer, *, ahead: int, names: Sequence[str] = ()
) -> Generator[tuple[Sample, Row], None, None]:
    """Rows in the order of the outcomes; masks are encoded in threads, at most `ahead` behind the model."""

    def encode(item: Outcome) -> tuple[Sample, Row]:
        sample, outcome = item
        if isinstance(outcome, Row):
            return sample, outcome
        with step("write"):
            return sample, labelled_row(sample, shard, outcome, names)

    return prefetch_map(encode, outcomes, threads=ENCODERS, ahead=ahead)


def _image_member(sample: Sample) -> tuple[str, bytes] | None:
    """Extension by the first bytes of the file, since keys and columns need not tell."""
    data = sample.image or b""
    kinds = {JPEG: "jpg", PNG: "png", GIF: "gif", RIFF: "webp"}
    return next((kind for magic, kind in kinds.items() if data.startswith(magic)), "bin"), data
