"""`label_shard`: the one function that turns a shard into a committed label shard. It knows no Ray.

read → decode → batch → one pass → rows in input order → files → commit record. Only the pass and the files are the
caller's own work: the next samples are read and decoded, and the masks of the last batch encoded, in threads beside it.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from typing import Any

import numpy as np

from diffseg import ImageError, Segmentation, Segmenter
from diffseg.images import decode_image
from pipeline.ahead import draw_ahead, map_ahead
from pipeline.commit import Commit, write_commit
from pipeline.outputs import LabelShardWriter
from pipeline.rows import Row, failed_row, labelled_row
from pipeline.settings import LabelSettings
from pipeline.shards import Sample, Shard, read_shard
from pipeline.storage import Storage
from pipeline.timing import StepTimer

DECODERS, ENCODERS = 2, 2
"""Threads that decode images ahead of the model, and encode masks behind it."""

Decoded = tuple[Sample, np.ndarray | None, Row | None]
"""A sample with either its pixels, uint8 [H, W, 3], or the row that says why there are none."""

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
    on_sample: Callable[[], None] = lambda: None,
) -> Commit:
    """Label every sample of a shard and commit; doing it again writes the same bytes to the same names.

    metadata: goes into the Parquet footer; its `fingerprint` into the commit record. source: how the shard's store is
    reached. on_sample: called once a row.
    Raises ShardError where the shard itself cannot be read, OSError where a store fails.
    """
    started, clock, step = time.time(), time.perf_counter(), StepTimer()
    counts: Counter[str] = Counter()
    with (
        LabelShardWriter(shard.name, formats=settings.formats, metadata=metadata) as writer,
        closing(_rows(shard, segmenter, settings, source, step)) as rows,
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
    )
    write_commit(out, commit)
    return commit


def _rows(
    shard: Shard, segmenter: Segmenter, settings: LabelSettings, source: Storage, step: StepTimer
) -> Generator[tuple[Sample, Row], None, None]:
    ahead = segmenter.batch_size + DECODERS
    # Closed here, since an error that somebody holds would hold the stages before it, and their threads, as well.
    with (
        closing(
            draw_ahead(read_shard(shard, source, image_field=settings.image_field, step=step), ahead=ahead)
        ) as samples,
        closing(decode_ahead(samples, shard.name, settings.max_pixels, step, ahead=ahead)) as decoded,
        closing(label_samples(decoded, segmenter, shard.name, step)) as outcomes,
        closing(encode_ahead(outcomes, shard.name, step, ahead=segmenter.batch_size)) as rows,
    ):
        yield from rows


def decode_ahead(
    samples: Iterable[Sample], shard: str, max_pixels: int, step: StepTimer, *, ahead: int
) -> Generator[Decoded, None, None]:
    """Decode in threads, at most `ahead` samples in front of the consumer, in the order of the input."""

    def decode(sample: Sample) -> Decoded:
        if sample.status != "ok" or sample.image is None:
            return sample, None, failed_row(sample, shard, sample.status, sample.error)
        try:
            with step("decode"):
                return sample, decode_image(sample.image, max_pixels=max_pixels), None
        except ImageError as error:
            row = failed_row(sample, shard, error.status, str(error))
            return dataclasses.replace(sample, image=None), None, row  # its bytes need not wait with it for a batch

    return map_ahead(decode, samples, threads=DECODERS, ahead=ahead)


def label_samples(
    decoded: Iterable[Decoded], segmenter: Segmenter, shard: str, step: StepTimer
) -> Generator[Outcome, None, None]:
    """Outcomes in input order; as many decodable images as the model's batch holds go through it at once."""
    waiting: list[Decoded] = []
    images = 0
    for item in decoded:
        waiting.append(item)
        images += item[1] is not None
        if images in (0, segmenter.batch_size):
            yield from _label_batch(waiting, segmenter, shard, step)
            waiting, images = [], 0
    yield from _label_batch(waiting, segmenter, shard, step)


def _label_batch(
    waiting: list[Decoded], segmenter: Segmenter, shard: str, step: StepTimer
) -> Generator[Outcome, None, None]:
    images = [pixels for _, pixels, _ in waiting if pixels is not None]
    results = segmenter.segment_batch(images, step) if images else iter(())
    for sample, pixels, row in waiting:
        outcome = next(results) if pixels is not None else row
        if pixels is not None and isinstance(outcome, Exception):
            height, width = pixels.shape[:2]
            outcome = failed_row(sample, shard, "nonfinite", str(outcome), size=(height, width))
        assert isinstance(outcome, Segmentation | Row)
        yield sample, outcome


def encode_ahead(
    outcomes: Iterable[Outcome], shard: str, step: StepTimer, *, ahead: int
) -> Generator[tuple[Sample, Row], None, None]:
    """Rows in the order of the outcomes; masks are encoded in threads, at most `ahead` behind the model."""

    def encode(item: Outcome) -> tuple[Sample, Row]:
        sample, outcome = item
        if isinstance(outcome, Row):
            return sample, outcome
        with step("write"):
            return sample, labelled_row(sample, shard, outcome)

    return map_ahead(encode, outcomes, threads=ENCODERS, ahead=ahead)


def _image_member(sample: Sample) -> tuple[str, bytes] | None:
    """Extension by the first bytes of the file, since keys and columns need not tell."""
    data = sample.image or b""
    kinds = {JPEG: "jpg", PNG: "png", GIF: "gif", RIFF: "webp"}
    return next((kind for magic, kind in kinds.items() if data.startswith(magic)), "bin"), data
