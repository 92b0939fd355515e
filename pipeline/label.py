"""`label_shard`: the one function that turns a shard into a committed label shard. It knows no Ray.

read → decode in threads → batch → one pass → rows in input order → files → commit record.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from diffseg import ImageError, Segmenter
from diffseg.images import decode_image
from pipeline.commit import Commit, write_commit
from pipeline.outputs import LabelShardWriter
from pipeline.rows import Row, failed_row, labelled_row
from pipeline.settings import LabelSettings
from pipeline.shards import Sample, Shard, read_shard
from pipeline.storage import Storage
from pipeline.timing import StepTimer

DECODERS = 2
"""Threads that decode ahead of the model."""

Decoded = tuple[Sample, np.ndarray | None, Row | None]
"""A sample with either its pixels, uint8 [H, W, 3], or the row that says why there are none."""

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
    with LabelShardWriter(shard.name, formats=settings.formats, metadata=metadata) as writer:
        samples = _timed(read_shard(shard, source, image_field=settings.image_field), step)
        decoded = decode_ahead(samples, shard.name, settings.max_pixels, step, ahead=segmenter.batch_size + DECODERS)
        for sample, row in label_samples(decoded, segmenter, shard.name, step):
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


def _timed(samples: Iterator[Sample], step: StepTimer) -> Iterator[Sample]:
    while True:
        with step("read"):
            sample = next(samples, None)
        if sample is None:
            return
        yield sample


def decode_ahead(
    samples: Iterable[Sample], shard: str, max_pixels: int, step: StepTimer, *, ahead: int
) -> Iterator[Decoded]:
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

    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:
        pending: deque[Future[Decoded]] = deque()
        try:
            for sample in samples:
                pending.append(pool.submit(decode, sample))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def label_samples(
    decoded: Iterable[Decoded], segmenter: Segmenter, shard: str, step: StepTimer
) -> Iterator[tuple[Sample, Row]]:
    """Rows in input order; as many decodable images as the model's batch holds go through it at once."""
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
) -> Iterator[tuple[Sample, Row]]:
    images = [pixels for _, pixels, _ in waiting if pixels is not None]
    results = segmenter.segment_batch(images, step) if images else iter(())
    for sample, pixels, row in waiting:
        if pixels is not None:
            result = next(results)
            if isinstance(result, Exception):
                height, width = pixels.shape[:2]
                row = failed_row(sample, shard, "nonfinite", str(result), size=(height, width))
            else:
                with step("write"):
                    row = labelled_row(sample, shard, result)
        assert row is not None
        yield sample, row


def _image_member(sample: Sample) -> tuple[str, bytes] | None:
    """Extension by the first bytes of the file, since keys and columns need not tell."""
    data = sample.image or b""
    kinds = {JPEG: "jpg", PNG: "png", GIF: "gif", RIFF: "webp"}
    return next((kind for magic, kind in kinds.items() if data.startswith(magic)), "bin"), data
