"""Runs without a model: their worker reads, decodes and commits like the real one, and makes one segment of an image.

The confidence of a label map depends on the pixels, so that the rows of two images differ.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from diffseg import Segmentation
from diffseg.segmentation import Segment
from pipeline.executor.driver import label_run
from pipeline.executor.protocol import Job, WorkerProgress, WorkerReport
from pipeline.executor.summary import RunSummary
from pipeline.label import label_shard
from pipeline.output.commit import Commit
from pipeline.output.fence import Fence
from pipeline.output.manifest import fingerprint_of, require_manifest, versions
from pipeline.output.reader import label_rows
from pipeline.output.records import read_run_commits
from pipeline.output.rows import SCHEMA
from pipeline.readers.samples import Shard
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import Storage


class BlankSegmenter:
    """The part of the interface of `diffseg.Segmenter` that `label_shard` uses."""

    batch_size = 1

    def prepare(self, image: np.ndarray, prompt: object = None) -> Any:
        return SimpleNamespace(size=image.shape[:2], confidence=zlib.crc32(image.tobytes()) / 2**32)

    def launch_each(self, batches: Iterable[Sequence[Any]], step: object = None) -> Iterator[Any]:
        for inputs in batches:
            results = [blank_segmentation(*each.size, each.confidence) for each in inputs]
            yield SimpleNamespace(results=partial(list, results))


def blank_segmentation(height: int, width: int, confidence: float) -> Segmentation:
    """Return a label map of one segment."""
    segment = Segment(id=0, area=height * width, bbox=(0, 0, width, height), confidence=confidence)
    return Segmentation(labels=np.zeros((height, width), np.uint16), segments=(segment,), confidence=confidence)


class BlankWorker:
    """Labels shards with a `BlankSegmenter`."""

    on_sample: Callable[[], None] = staticmethod(lambda: None)
    """Called once for each row."""

    def load(self, job: Job) -> WorkerReport:
        self.job = job
        fingerprint = fingerprint_of(job.settings, "blank", {})
        self.report = WorkerReport(
            model_sha256="blank",
            resolved={},
            fingerprint=fingerprint,
            environment={"versions": versions()},
            host="here",
        )
        return self.report

    def label(self, shard: Shard, attempt: int) -> Commit:
        segmenter: Any = BlankSegmenter()
        return label_shard(
            shard,
            segmenter=segmenter,
            settings=self.job.settings,
            metadata={"fingerprint": self.report.fingerprint},
            out=self.job.out,
            source=self.job.source,
            attempt=attempt,
            on_sample=self.on_sample,
            fence=Fence(fingerprint=self.report.fingerprint, listing=self.job.listing),
        )

    def progress(self) -> WorkerProgress:
        return WorkerProgress(samples=0, waiting="")


def blank_run(
    source: Path | str,
    out: Path | str,
    *,
    label: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **run: Any,
) -> RunSummary:
    """Run the driver in this process with a `BlankWorker`.

    Args:
        source: SRC.
        out: OUT.
        label: Settings of `LabelSettings`.
        options: Options for the stores of SRC and OUT.
        run: Settings of `RunSettings`, or `worker_class`.
    """
    worker_class = run.pop("worker_class", BlankWorker)
    return label_run(
        str(source),
        str(out),
        settings=LabelSettings(**({"samples_per_shard": 4} | dict(label or {}))),
        worker=WorkerSettings(device="cpu"),
        run=RunSettings(no_ray=True, **run),
        source_options=options,
        out_options=options,
        worker_class=worker_class,
    )


def all_rows(out: Path | str, options: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a run as its readers see them, without the column `mask`, sorted by shard and index."""
    storage = Storage(url=str(out), options=options)
    shards = sorted(read_run_commits(storage, require_manifest(storage)).done)
    columns = [name for name in SCHEMA.names if name != "mask"]
    return [row for shard in shards for row in label_rows(storage, shard, columns)]


def file_rows(out: Path) -> list[dict[str, Any]]:
    """Return the rows in all Parquet files of OUT, as a program sees them that knows nothing about records."""
    columns = [name for name in SCHEMA.names if name != "mask"]
    paths = sorted((out / "labels").glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path, columns=columns).to_pylist()]


def keys_of(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(row["key"] for row in rows)
