"""Writes the rows of a shard to OUT and commits them, for every command that makes label shards."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from pipeline.output.commit import Commit, tag_of, write_commit
from pipeline.output.fence import Fence, publication
from pipeline.output.rows import Row
from pipeline.output.writer import LabelShardWriter
from pipeline.settings import Format
from pipeline.storage import Storage
from pipeline.timing import StepTimer

RowAndImage = tuple[Row, tuple[str, bytes] | None]
"""A row, and the extension and bytes of the source image to store beside its label map."""


def write_shard(
    shard: str,
    rows: Iterable[RowAndImage],
    *,
    out: Storage,
    formats: tuple[Format, ...],
    metadata: Mapping[str, Any],
    inputs: str,
    attempt: int,
    step: StepTimer,
    fence: Fence | None,
    batch_size: int = 0,
    levels: bool = False,
    features: bool = False,
    quality: bool = False,
    generated: bool = False,
    notes: Sequence[str] = (),
    on_sample: Callable[[], None] = lambda: None,
    before_commit: Callable[[], None] = lambda: None,
) -> Commit:
    """Write the rows of a shard and commit it. Doing so again writes the same bytes under the same names.

    Args:
        shard: Name of the shard.
        rows: Its rows in order.
        out: OUT.
        formats: Formats to write.
        metadata: Written into the Parquet footer; its "fingerprint" also goes into the commit record.
        inputs: Digest of the inputs that the rows are made from.
        attempt: Number of the attempt, from 1.
        step: Times the steps; writing is added to it as "write".
        fence: What run.json must say when the shard is committed; None if no other run can use OUT.
        batch_size: Images in one pass of the model.
        levels: Whether the rows have levels.
        features: Whether the rows have features.
        quality: Whether the rows have a score of quality.
        generated: Whether the rows have generated images.
        notes: Sentences about the input for the summary of the run, complete when the last row has been taken.
        on_sample: Called once for each row.
        before_commit: Called when all rows have been taken; an error that it raises prevents the commit.

    Returns:
        The record that was written.

    Raises:
        RunTakenOver: Another run has taken over OUT.
        OSError: A store fails.
    """
    started, clock = time.time(), time.perf_counter()
    counts: Counter[str] = Counter()
    fingerprint = metadata["fingerprint"]
    tag = tag_of(fingerprint, inputs)
    metadata = {**metadata, "tag": tag}
    further = {"levels": levels, "features": features, "quality": quality, "generated": generated}
    with LabelShardWriter(shard, formats=formats, metadata=metadata, **further) as writer:
        for row, image in rows:
            with step("write"):
                writer.add(row, image=image)
            counts[row.status] += 1
            on_sample()
        before_commit()
        commit = Commit(
            shard=shard,
            state="done",
            fingerprint=fingerprint,
            attempt=attempt,
            inputs=inputs,
            rows=counts.total(),
            counts=dict(counts),
            started=started,
            worker=socket.gethostname(),
            batch_size=batch_size,
            notes=tuple(notes),
        )
        with nullcontext() if fence is None else publication(out, shard, tag, fence):
            with step("write"):
                files = writer.publish(out)
            seconds = {name: round(seconds, 4) for name, seconds in step.seconds.items()}
            seconds["total"] = round(time.perf_counter() - clock, 4)
            commit = dataclasses.replace(commit, files=files, seconds=seconds, finished=time.time())
            if fence is not None:
                fence.check(out)
            write_commit(out, commit)
    return commit
