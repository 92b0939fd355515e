"""Makes a new run from the rows of a run, without a model: the same driver, workers and commit records.

The label shards of the first run are the source of the new one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar

import psutil
from rich.console import Console

from pipeline.digest import short_digest
from pipeline.executor import metrics
from pipeline.executor.cores import own_cores
from pipeline.executor.logs import limit_actor_to_project
from pipeline.executor.protocol import Job, WorkerProgress, WorkerReport
from pipeline.executor.shard_run import guard_out, run_shards
from pipeline.executor.summary import RunSummary
from pipeline.output.commit import Commit, LabelShard
from pipeline.output.fence import Fence
from pipeline.output.manifest import Manifest, check_same_run, is_generated, read_manifest, versions
from pipeline.output.reader import label_rows
from pipeline.output.records import read_run_commits
from pipeline.output.rows import Row, schema_of
from pipeline.output.source_images import label_shard_source
from pipeline.output.write_shard import RowAndImage, write_shard
from pipeline.prefetch import prefetch_map
from pipeline.readers.samples import Shard
from pipeline.settings import LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import SourceError, Storage
from pipeline.storage.retries import waiting
from pipeline.timing import StepTimer

AHEAD_PER_THREAD = 4
"""Rows that each thread may change ahead of the writer."""

FURTHER_COLUMNS = ("levels", "features", "quality")
"""Settings of a labelling run that add columns to its rows."""


@dataclass(frozen=True, kw_only=True)
class RewriteSettings(LabelSettings):
    """What determines the labels of the new run: the first run, and the change of its rows.

    Attributes:
        origin: run.json of the first run.
    """

    origin: Manifest

    name: ClassVar[str]
    """Name of the change in run.json and in the metadata of label shards."""
    keeps: ClassVar[tuple[str, ...]] = ()
    """Those of `FURTHER_COLUMNS` that the new rows keep if the first run has them."""

    def change(self) -> dict[str, Any]:
        """Return everything that determines the change as plain values."""
        raise NotImplementedError

    def columns(self, columns: Sequence[str]) -> Sequence[str]:
        """Return the columns that must be read to change rows with these columns."""
        raise NotImplementedError

    def values(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that change in a row whose status is ok."""
        raise NotImplementedError

    def replaced(self) -> dict[str, Any]:
        """Return the settings of the first run that the new run replaces."""
        return {}

    def further(self) -> dict[str, Any]:
        """Return which further columns the new rows have, for `schema_of`."""
        further = {name: bool(self.origin.settings.get(name, False)) for name in self.keeps}
        return further | {"generated": is_generated(self.origin.settings)}

    def plain(self) -> dict[str, Any]:
        """Return the settings of the first run and the change."""
        dropped = [name for name in FURTHER_COLUMNS if name not in self.keeps]
        kept = {name: value for name, value in self.origin.settings.items() if name not in dropped}
        changed = {"format": self.format, "include_image": False, self.name: self._change_of_run()}
        return {**kept, **self.replaced(), **changed}

    @property
    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits for everything that determines the labels."""
        return short_digest(json.dumps(self._change_of_run() | {"format": self.format}, sort_keys=True))

    def _change_of_run(self) -> dict[str, Any]:
        return self.change() | {"run": self.origin.fingerprint}


class RewriteWorker:
    """Changes the rows of one label shard at a time. It needs no model and no GPU."""

    def __init__(self) -> None:
        self._samples = 0
        limit_actor_to_project()

    def load(self, job: Job) -> WorkerReport:
        """Take the job."""
        assert isinstance(job.settings, RewriteSettings)
        self.job, self.settings = job, job.settings
        origin = self.settings.origin
        return WorkerReport(
            model_sha256=origin.model_sha256,
            resolved=origin.resolved,
            fingerprint=self.settings.fingerprint,
            environment={"versions": versions()},
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    def progress(self) -> WorkerProgress:
        """Return how far the current shard is; also update the metrics."""
        rss = psutil.Process().memory_info().rss
        progress = WorkerProgress(samples=self._samples, waiting=waiting(), rss=rss)
        metrics.measure_worker(progress)
        return progress

    def label(self, shard: Shard, attempt: int) -> Commit:
        """Change the rows of one shard and commit them."""
        self._samples, step = 0, StepTimer()
        settings = self.settings
        with closing(self._rows(LabelShard(shard.name, shard.version), step)) as rows:
            return write_shard(
                shard.name,
                rows,
                out=self.job.out,
                formats=settings.formats,
                metadata={
                    "fingerprint": settings.fingerprint,
                    "model_sha256": settings.origin.model_sha256,
                    settings.name: settings.plain()[settings.name],
                    "versions": versions(),
                },
                inputs=shard.digest(),
                attempt=attempt,
                step=step,
                fence=Fence(fingerprint=settings.fingerprint, listing=self.job.listing),
                on_sample=self._count_sample,
                **settings.further(),
            )

    def _rows(self, shard: LabelShard, step: StepTimer) -> Generator[RowAndImage, None, None]:
        """Yield the rows of a label shard, changed in threads."""
        settings = self.settings
        names = schema_of(**settings.further()).names
        stored = step.iterate("read", label_rows(self.job.source, shard, settings.columns(names)))

        def change(row: dict[str, Any]) -> RowAndImage:
            with step(settings.name):
                values = {name: row[name] for name in names}
                return Row.of(values | (settings.values(row) if row["status"] == "ok" else {})), None

        threads = own_cores()
        return prefetch_map(change, stored, threads=threads, ahead=AHEAD_PER_THREAD * threads)

    def _count_sample(self) -> None:
        self._samples += 1
        metrics.IMAGES.record(1)


def open_pair(out: str, new: str, options: Mapping[str, Any] | None, run: RunSettings) -> tuple[Storage, Storage]:
    """Return the folders of the first and of the new run.

    Raises:
        SourceError: They are the same.
    """
    source = Storage(url=out, options=options, retry_timeout=run.store_timeout)
    target = Storage(url=new, options=options, retry_timeout=run.store_timeout)
    if target.url == source.url:
        raise SourceError(f"{source.redacted}: NEW must be another folder than OUT, which stays as it is")
    return source, target


def rewrite_run(
    source: Storage,
    target: Storage,
    settings: RewriteSettings,
    *,
    run: RunSettings,
    console: Console | None = None,
    worker_class: Callable[[], RewriteWorker] = RewriteWorker,
) -> RunSummary:
    """Change all rows of a run, into a new run. Doing so again continues where it was stopped.

    Args:
        source: OUT of the first run.
        target: The new run.
        settings: The change.
        run: How the run is carried out.
        console: Where to show the progress; None shows nothing.
        worker_class: Class of the workers.

    Returns:
        What the new run holds afterwards.

    Raises:
        SourceError: No shard of the first run is done.
        RunRefused: `target` belongs to another run.
        RunFailed: No worker starts, a store is unreachable, or another run has taken over `target`.
        OSError: A request of the driver to a store failed.
    """
    origin = settings.origin
    before = None if run.overwrite else read_manifest(target)
    shards = _label_shards(source, origin)
    guard_out(target, before, run)
    if before is not None:
        now = dataclasses.replace(before, source=origin.source, settings=settings.plain())
        check_same_run(before, dataclasses.replace(now, fingerprint=settings.fingerprint), target)
    job = Job(settings=settings, worker=WorkerSettings(device="cpu", batch_size=1), source=source, out=target)
    return run_shards(
        job, shards, run=run, source=origin.source, before=before, console=console, worker_class=worker_class
    )


def _label_shards(out: Storage, manifest: Manifest) -> list[Shard]:
    """Return the done label shards of a run as shards to read; the tag of its record is the version of each."""
    done = sorted(read_run_commits(out, manifest).done)
    if not done:
        raise SourceError(f"{out.redacted}: no shard of this run is done, so there is nothing to change")
    return [label_shard_source(out, shard) for shard in done]
