"""A training on Ray: `train` in each worker of Ray Train's TorchTrainer, which starts lost ones again."""

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
from pipeline.executor.cluster import connected
from pipeline.settings import RunSettings
from pipeline.storage import Storage
from pipeline.training.dataset import LabelDataset
from pipeline.training.loop import train
from pipeline.training.settings import TrainRunSettings, TrainSettings
from pipeline.training.state import Record
from pipeline.worker_pools import WorkerSpec

LOST_WORKERS = 3
"""So often all workers begin again from the last checkpoint."""

LOOK_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What every worker is told. dataset: arguments of LabelDataset, apart from the worker's place."""

    settings: TrainSettings
    dataset: dict[str, Any]
    model: str
    threads: int
    loaders: int
    save_every: int


def train_on_ray(job: TrainJob, run: TrainRunSettings, on_record: Callable[[Record], None]) -> None:
    """Train with `run.workers` workers on the cluster that is named or found, else on a Ray of this machine.

    Credentials of stores are the nodes' own: what a trainer is given is kept by the cluster's head.
    Raises RunFailed where the workers fail more than `LOST_WORKERS` times.
    """
    pool = WorkerSpec(max_workers=run.workers, exact=True)
    with connected(RunSettings(address=run.address), (pool,)), tempfile.TemporaryDirectory(prefix="train-") as folder:
        told = ray.remote(num_cpus=0)(_Told).remote()
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"job": job, "told": told},
            scaling_config=ScalingConfig(
                num_workers=run.workers, use_gpu=run.use_gpu, resources_per_worker=_resources(run)
            ),
            # Checkpoints are in MODEL, where a training without Ray has them too; Ray keeps its own notes here.
            run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=LOST_WORKERS)),
        )
        over = threading.Event()
        listener = threading.Thread(target=_listen, args=(told, on_record, over), name="training", daemon=True)
        listener.start()
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise RunFailed(f"the workers failed {LOST_WORKERS + 1} times, the last one with {error}") from error
        finally:
            over.set()
            listener.join()


def _resources(run: TrainRunSettings) -> dict[str, float]:
    gpus = {"GPU": 1.0} if run.use_gpu else {}
    return {"CPU": float(run.threads), **gpus}


def _train_worker(config: dict[str, Any]) -> None:
    job: TrainJob = config["job"]
    place = ray.train.get_context()
    dataset = LabelDataset(**job.dataset, rank=place.get_world_rank(), world_size=place.get_world_size())
    train(
        job.settings,
        dataset,
        Storage(url=job.model),
        device=get_device(),
        threads=job.threads,
        loaders=job.loaders,
        save_every=job.save_every,
        wrap=lambda network: prepare_model(network, move_to_device=False),
        on_record=config["told"].add.remote if place.get_world_rank() == 0 else lambda record: None,
    )


class _Told:
    """An actor: what the first worker has said and the driver not yet heard."""

    def __init__(self) -> None:
        self._records: list[Record] = []

    def add(self, record: Record) -> None:
        self._records.append(record)

    def take(self) -> list[Record]:
        taken, self._records = self._records, []
        return taken


def _listen(told: Any, on_record: Callable[[Record], None], over: threading.Event) -> None:
    while True:
        last = over.wait(LOOK_SECONDS)
        try:
            for record in ray.get(told.take.remote()):
                on_record(record)
        except ray.exceptions.RayError:  # the cluster is gone, which the trainer says better
            return
        if last:
            return
