"""Makes new labels from the levels of a run: the same driver, workers and commit records, with OUT as the source."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psutil
from rich.console import Console

from diffseg.levels import Cut
from pipeline.digest import short_digest
from pipeline.executor import metrics
from pipeline.executor.cores import own_cores
from pipeline.executor.logs import limit_actor_to_project
from pipeline.executor.protocol import Job, WorkerProgress, WorkerReport
from pipeline.executor.shard_run import guard_out, run_shards
from pipeline.executor.summary import RunSummary
from pipeline.output.commit import Commit, LabelShard
from pipeline.output.fence import Fence
from pipeline.output.levels import RunCut, cut_values
from pipeline.output.manifest import Manifest, check_same_run, read_manifest, require_manifest, versions
from pipeline.output.reader import label_rows
from pipeline.output.records import read_run_commits
from pipeline.output.rows import SCHEMA, Row
from pipeline.output.write_shard import RowAndImage, write_shard
from pipeline.output.writer import output_paths
from pipeline.prefetch import prefetch_map
from pipeline.readers.samples import Shard
from pipeline.settings import Format, LabelSettings, RunSettings, WorkerSettings
from pipeline.storage import SourceError, Storage
from pipeline.storage.retries import waiting
from pipeline.storage.urls import join_url
from pipeline.timing import StepTimer

AHEAD_PER_THREAD = 4
"""Rows that each thread may cut ahead of the writer."""


@dataclass(frozen=True, kw_only=True)
class RecutSettings(LabelSettings):
    """What determines the labels of a run that was cut again: the run that has the levels, and the cut.

    Attributes:
        origin: run.json of the run that has the levels.
        run_cut: The cut.
    """

    origin: Manifest
    run_cut: RunCut

    def plain(self) -> dict[str, Any]:
        """Return the settings of the first run and the cut; the new rows have neither levels nor features."""
        cut = dataclasses.asdict(self.run_cut.cut) | {"run": self.origin.fingerprint}
        kept = {name: value for name, value in self.origin.settings.items() if name not in ("levels", "features")}
        return {**kept, "format": self.format, "include_image": False, "recut": cut}

    @property
    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits for everything that determines the labels."""
        return short_digest(json.dumps(self.plain()["recut"] | {"format": self.format}, sort_keys=True))


class RecutWorker:
    """Cuts the rows of one label shard at a time. It needs no model and no GPU."""

    def __init__(self) -> None:
        self._samples = 0
        limit_actor_to_project()

    def load(self, job: Job) -> WorkerReport:
        """Take the job."""
        assert isinstance(job.settings, RecutSettings)
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
        """Cut the rows of one shard and commit them."""
        self._samples, step = 0, StepTimer()
        origin, fingerprint = self.settings.origin, self.settings.fingerprint
        with closing(self._rows(LabelShard(shard.name, shard.version), step)) as rows:
            return write_shard(
                shard.name,
                rows,
                out=self.job.out,
                formats=self.settings.formats,
                metadata={
                    "fingerprint": fingerprint,
                    "model_sha256": origin.model_sha256,
                    "recut": self.settings.plain()["recut"],
                    "versions": versions(),
                },
                inputs=shard.digest(),
                attempt=attempt,
                step=step,
                fence=Fence(fingerprint=fingerprint, listing=self.job.listing),
                on_sample=self._count_sample,
            )

    def _rows(self, shard: LabelShard, step: StepTimer) -> Generator[RowAndImage, None, None]:
        """Yield the rows of a label shard, cut in threads."""
        run_cut = self.settings.run_cut
        stored = step.iterate("read", label_rows(self.job.source, shard, run_cut.columns(SCHEMA.names)))

        def cut(row: dict[str, Any]) -> RowAndImage:
            with step("cut"):
                values = {name: row[name] for name in SCHEMA.names}
                return Row.of(values | (cut_values(row, run_cut) if row["status"] == "ok" else {})), None

        threads = own_cores()
        return prefetch_map(cut, stored, threads=threads, ahead=AHEAD_PER_THREAD * threads)

    def _count_sample(self) -> None:
        self._samples += 1
        metrics.IMAGES.record(1)


def recut_run(
    out: str,
    new: str,
    cut: Cut,
    *,
    run: RunSettings,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    console: Console | None = None,
    worker_class: Callable[[], RecutWorker] = RecutWorker,
) -> RunSummary:
    """Cut all rows of a run again, into a new run. Doing so again continues where it was stopped.

    Args:
        out: OUT of the run with levels, a folder or URL.
        new: Folder or URL of the new run.
        cut: The level to take.
        run: How the run is carried out.
        format: Formats to write, as in `LabelSettings`; None for those of OUT.
        options: Options for the stores of both.
        console: Where to show the progress; None shows nothing.
        worker_class: Class of the workers.

    Returns:
        What NEW holds after the run.

    Raises:
        SourceError: OUT has no levels, or no shard of it is done.
        RunRefused: NEW belongs to another run.
        RunFailed: No worker starts, a store is unreachable, or another run has taken over NEW.
        OSError: A request of the driver to a store failed.
    """
    source = Storage(url=out, options=options, retry_timeout=run.store_timeout)
    target = Storage(url=new, options=options, retry_timeout=run.store_timeout)
    if target.url == source.url:
        raise SourceError(f"{source.redacted}: NEW must be another folder than OUT, which keeps the levels")
    origin = require_manifest(source)
    formats: Any = origin.settings.get("format", "parquet") if format is None else format
    run_cut = RunCut.of(cut, origin, source.redacted)
    settings = RecutSettings(origin=origin, run_cut=run_cut, format=formats)
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
        raise SourceError(f"{out.redacted}: no shard of this run is done, so there is nothing to cut")
    formats: tuple[Format, ...] = ("parquet",)
    return [
        Shard(
            name=str(shard),
            url=join_url(out.url, output_paths(shard, formats)["parquet"]),
            kind="parquet",
            version=shard.tag,
        )
        for shard in done
    ]
