"""Training on Ray: Ray Train's TorchTrainer runs `train` in each worker and restarts the workers when one is lost."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model

from pipeline.errors import RunFailed
from pipeline.executor.connection import connected
from pipeline.output.selection import RowSelection
from pipeline.settings import RunSettings
from pipeline.storage import Storage
from pipeline.training.dataset import LabelDataset
from pipeline.training.loop import train
from pipeline.training.settings import TrainRunSettings, TrainSettings
from pipeline.training.state import Record
from pipeline.worker_pools import WorkerSpec

MAX_RESTARTS = 3
"""Number of times that all workers are restarted from the last checkpoint."""

POLL_SECONDS = 0.5
"""Interval at which the driver fetches new progress records."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Everything a worker needs to start.

    Attributes:
        settings: What is trained.
        run: How the training is carried out.
        out: OUT of the run whose labels are used.
        images: Folder or URL of the source images, if they are no longer at the location in run.json.
        model: URL of MODEL.
        selection: Rows of the run that are used.
    """

    settings: TrainSettings
    run: TrainRunSettings
    out: str
    images: str | None
    model: str
    selection: RowSelection


def train_on_ray(job: TrainJob, on_record: Callable[[Record], None]) -> None:
    """Train with `job.run.workers` workers on the cluster that is joined, or on a private Ray.

    Nodes need their own credentials for the storage, because the head of the cluster keeps what a trainer is passed.

    Args:
        job: The training.
        on_record: Called with each new progress record.

    Raises:
        RunFailed: The workers failed more than `MAX_RESTARTS` times.
    """
    run = job.run
    spec = WorkerSpec(max_workers=run.workers, exact=True)
    with connected(RunSettings(address=run.address), (spec,)), tempfile.TemporaryDirectory(prefix="train-") as folder:
        records = ray.remote(num_cpus=0)(_RecordBuffer).remote()
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"job": job, "records": records},
            scaling_config=ScalingConfig(
                num_workers=run.workers, use_gpu=run.use_gpu, resources_per_worker=_resources(run)
            ),
            # Checkpoints are written to MODEL, as without Ray; this folder is for Ray Train's own files.
            run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=MAX_RESTARTS)),
        )
        done = threading.Event()
        args = (records, on_record, done)
        listener = threading.Thread(target=_forward_records, args=args, name="training", daemon=True)
        listener.start()
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise RunFailed(f"the workers failed {MAX_RESTARTS + 1} times; the last error: {error}") from error
        finally:
            done.set()
            listener.join()


def _resources(run: TrainRunSettings) -> dict[str, float]:
    gpus = {"GPU": 1.0} if run.use_gpu else {}
    return {"CPU": float(run.threads), **gpus}


def _train_worker(config: dict[str, Any]) -> None:
    job: TrainJob = config["job"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    settings = job.settings.dataset(job.selection)
    dataset = LabelDataset(job.out, settings, images=job.images, rank=rank, world_size=world_size, share_batches=True)
    train(
        job.settings,
        job.run,
        dataset,
        Storage(url=job.model),
        device=get_device(),
        wrap=lambda network: prepare_model(network, move_to_device=False),
        on_record=config["records"].add.remote if rank == 0 else lambda record: None,
    )


class _RecordBuffer:
    """Actor that holds the records which the worker of rank 0 has sent and the driver has not fetched yet."""

    def __init__(self) -> None:
        self._records: list[Record] = []

    def add(self, record: Record) -> None:
        self._records.append(record)

    def take(self) -> list[Record]:
        taken, self._records = self._records, []
        return taken


def _forward_records(records: Any, on_record: Callable[[Record], None], done: threading.Event) -> None:
    """Pass new records to `on_record` until the training is done."""
    while True:
        is_last = done.wait(POLL_SECONDS)
        try:
            for record in ray.get(records.take.remote()):
                on_record(record)
        except ray.exceptions.RayError:  # the cluster is gone; the trainer raises a better error
            return
        if is_last:
            return
