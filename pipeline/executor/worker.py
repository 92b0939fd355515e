"""A worker: one model on one device. The driver uses the same class in its own process and as a Ray actor.

The driver of actors imports this module too, but needs no model, so torch and diffusers are imported in `load`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import time
from typing import Any

import psutil

from pipeline.executor import metrics
from pipeline.executor.auto_settings import choose_batch_size, run_blank_batch, with_dtype_of_worker
from pipeline.executor.cores import own_cores
from pipeline.executor.gpu_meter import meter_of
from pipeline.executor.logs import limit_actor_to_project
from pipeline.executor.models import LoadedModel, load_model
from pipeline.executor.protocol import Job, WorkerProgress, WorkerReport
from pipeline.output.commit import Commit
from pipeline.output.fence import Fence
from pipeline.output.manifest import fingerprint_of, versions
from pipeline.readers.samples import Shard
from pipeline.storage import redact
from pipeline.storage.retries import waiting

log = logging.getLogger(__name__)

MIN_THREADS, MAX_THREADS = 2, 32
"""Bounds of the threads that decode images, and of those that encode masks. Each may hold an image."""


class LabelWorker:
    """Loads the model once, then labels one shard at a time."""

    def __init__(self) -> None:
        self._samples = 0
        limit_actor_to_project()

    def load(self, job: Job) -> WorkerReport:
        """Load the model. This is not part of the constructor, so that its errors differ from those of the process.

        Raises:
            CheckpointError: The checkpoint cannot be used (a ValueError).
            ValueError: The settings do not fit the checkpoint.
            OSError: The store of the checkpoint fails.
        """
        started = time.monotonic()
        settings = with_dtype_of_worker(job)
        self.job = job = dataclasses.replace(job, settings=settings)
        self.model = self._load_model(job)

        import torch

        self.segmenter = self.model.segmenter
        self.gpu_meter = meter_of(job.worker.device)
        self.segmenter.batch_size = self._batch_size(self.model.sha256)
        if job.worker.compile:
            torch.set_num_threads(job.worker.threads)  # compiled code for CPUs keeps the number of threads
            run_blank_batch(self.segmenter)
        self.threads = min(MAX_THREADS, max(MIN_THREADS, own_cores()))
        self.report = WorkerReport(
            model_sha256=self.model.sha256,
            resolved=self.model.resolved,
            fingerprint=fingerprint_of(settings, self.model.sha256, self.model.resolved),
            environment=self._environment(),
            host=socket.gethostname(),
            pid=os.getpid(),
            dtype=settings.known_dtype,
            startup_seconds=round(time.monotonic() - started, 1),
            gpu=torch.cuda.get_device_name() if job.worker.device.startswith("cuda") else "",
        )
        return self.report

    def _load_model(self, job: Job) -> LoadedModel:
        """Return what this worker labels with."""
        return load_model(job)

    def _metadata(self) -> dict[str, Any]:
        """Return what the footer of each label shard says about its rows."""
        return {
            **self.model.about,
            "fingerprint": self.report.fingerprint,
            "model": self.job.settings.model,
            "model_sha256": self.report.model_sha256,
            "resolved": self.report.resolved,
            "versions": self.report.environment["versions"],
        }

    def _environment(self) -> dict[str, Any]:
        """Return what may change the last bits of a float, for run.json."""
        worker = self.job.worker
        environment = {
            "device": worker.device,
            "batch_size": self.segmenter.batch_size,
            "threads": worker.threads,
            "versions": versions(),
        }
        return environment | self.model.environment | ({"compile": True} if worker.compile else {})

    def _batch_size(self, model_sha256: str) -> int:
        """Return the batch size of the settings, or the best one for this model, method and kind of GPU."""
        if self.job.worker.batch_size != "auto":
            return self.job.worker.batch_size
        settings = self.job.settings
        depends_on = {"model": model_sha256, "dtype": settings.dtype, "method": settings.method.flat()}
        return choose_batch_size(self.segmenter, self.job.worker.device, depends_on)

    def progress(self) -> WorkerProgress:
        """Return how far the current shard is and how much memory this process uses; also update the metrics."""
        import torch

        on_gpu = self.job.worker.device.startswith("cuda")
        progress = WorkerProgress(
            samples=self._samples,
            waiting=waiting(),
            rss=psutil.Process().memory_info().rss,
            gpu_memory=torch.cuda.memory_reserved() if on_gpu else 0,
            gpu=self.gpu_meter.read(),
        )
        metrics.measure_worker(progress)
        return progress

    def label(self, shard: Shard, attempt: int) -> Commit:
        """Label and commit one shard, after `load`. If memory runs out, this worker uses smaller batches from then on.

        Raises the errors of `label_shard`.
        """
        log_fields = {"shard": shard.name, "attempt": attempt, "host": self.report.host, "pid": self.report.pid}
        log.info("shard %s started, attempt %d", shard.name, attempt, extra=log_fields)
        started = time.monotonic()
        try:
            commit = self._label_within_memory(shard, attempt)
        except Exception as error:
            log_fields |= {"rows": self._samples, "seconds": round(time.monotonic() - started, 3)}
            text = redact(f"{type(error).__name__}: {error}")
            log.info("shard %s failed after %.1f s: %s", shard.name, log_fields["seconds"], text, extra=log_fields)
            raise
        seconds = round(time.monotonic() - started, 3)
        log_fields |= {"rows": commit.rows, "seconds": seconds}
        log.info("shard %s committed: %d rows in %.1f s", shard.name, commit.rows, seconds, extra=log_fields)
        return commit

    def _label_within_memory(self, shard: Shard, attempt: int) -> Commit:
        from diffseg.devices import out_of_memory, release_device_memory

        while True:
            try:
                return self._label(shard, attempt)
            except RuntimeError as error:
                if not out_of_memory(error) or self.segmenter.batch_size == 1:
                    raise
            # After the except block, when the error and the batch that its frames hold have been released.
            release_device_memory(self.job.worker.device)
            self.segmenter.batch_size //= 2
            log.warning("out of memory; from now on %d images at once", self.segmenter.batch_size)

    def _label(self, shard: Shard, attempt: int) -> Commit:
        import torch

        from pipeline.label import label_shard

        # The number of OpenMP threads is a setting of the calling thread, and an actor's calls come in new threads.
        torch.set_num_threads(self.job.worker.threads)
        self._samples = 0
        return label_shard(
            shard,
            segmenter=self.segmenter,
            settings=self.job.settings,
            metadata=self._metadata(),
            out=self.job.out,
            source=self.job.source,
            attempt=attempt,
            names=self.model.names,
            threads=self.threads,
            on_sample=self._count_sample,
            fence=self._fence(),
        )

    def _fence(self) -> Fence:
        return Fence(fingerprint=self.report.fingerprint, listing=self.job.listing)

    def _count_sample(self) -> None:
        self._samples += 1
        metrics.IMAGES.record(1)
