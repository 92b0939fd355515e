"""The training loop of one worker. It is the same with and without Ray, for one worker and for many.

All random numbers of a step follow from (seed, step, rank), so a training that was killed and continues from its last
checkpoint ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from diffseg.optim import cosine, descend, optimiser_of, set_lr
from pipeline.networks.build import create_network
from pipeline.networks.files import save_network
from pipeline.storage import SourceError, Storage
from pipeline.training.dataset import LabelDataset
from pipeline.training.objective import objective
from pipeline.training.settings import TrainRunSettings, TrainSettings
from pipeline.training.state import Record, load_checkpoint, save_checkpoint

DIMENSIONS = 16
"""Dimensions of the embedding: up to this many segments of an image can have orthogonal vectors."""

RECORDS = 100
"""Number of progress records of a training; its curves are drawn from them."""

WARM_UP = 0.05
"""Share of the steps during which the learning rate rises."""


def train(
    settings: TrainSettings,
    run: TrainRunSettings,
    dataset: LabelDataset,
    model: Storage,
    *,
    device: str | torch.device = "cpu",
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    on_record: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Train from the last checkpoint in MODEL to the last step.

    The worker of rank 0 writes the checkpoints and the trained network.

    Args:
        settings: What is trained.
        run: Threads, data-loader processes and checkpoint interval of this worker.
        dataset: The training samples of this rank.
        model: MODEL.
        device: Device of the network.
        wrap: Returns a module that averages gradients over all workers.
        on_record: Called with each new record.

    Returns:
        The records of all steps, including those before the checkpoint.

    Raises:
        SourceError: The run has too few images for one batch per worker.
    """
    torch.set_num_threads(run.threads)
    dimensions = DIMENSIONS if settings.target == "segments" else dataset.classes
    torch.manual_seed(settings.seed)
    class_names = dataset.class_names if settings.target == "classes" else ()
    network, about = create_network(
        settings.network,
        dimensions=dimensions,
        width=settings.width,
        class_names=class_names,
        backbone=settings.backbone,
    )
    network = network.to(device)
    optimiser = optimiser_of(network)
    step, history = load_checkpoint(model, network, optimiser)
    wrapped = wrap(network)
    recorder = _Recorder(settings, history, on_record)
    for batch in _batches(dataset, settings, step, run.loaders):
        torch.manual_seed(_seed_of_step(settings.seed, step, dataset.rank))  # for dropout
        set_lr(optimiser, settings.learning_rate * _schedule(step / settings.steps))
        losses = objective(wrapped, batch, settings.target, device=device, seed=(settings.seed, step, dataset.rank))
        descend(losses["loss"], wrapped, optimiser)
        step += 1
        recorder.add(step, losses)
        if dataset.rank == 0 and (step % run.save_every == 0 or step == settings.steps):
            save_checkpoint(model, network, optimiser, step, history)
    if dataset.rank == 0:
        config = {"target": settings.target, "dimensions": dimensions, "size": settings.size}
        save_network(model, network, about | config | {"class_names": class_names})
    return history


def _seed_of_step(*numbers: int) -> int:
    """Return a seed that follows from the seed of the training, the step and the rank."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class _Recorder:
    """Appends the mean losses of every few steps to the history."""

    def __init__(self, settings: TrainSettings, history: list[Record], on_record: Callable[[Record], None]) -> None:
        self._steps, self._every = settings.steps, max(1, settings.steps // RECORDS)
        self._history, self._on_record = history, on_record
        self._reset(time.perf_counter())

    def _reset(self, now: float) -> None:
        self._sums: defaultdict[str, Any] = defaultdict(float)
        self._count, self._started = 0, now

    def add(self, step: int, losses: dict[str, torch.Tensor]) -> None:
        self._count += 1
        for name, value in losses.items():
            self._sums[name] += value.detach()  # reading the value here would wait for the GPU
        if step % self._every == 0 or step == self._steps:
            now = time.perf_counter()
            means = {name: float(total) / self._count for name, total in self._sums.items()}
            self._history.append({"step": step, "seconds": round(now - self._started, 3), **means})
            self._on_record(self._history[-1])
            self._reset(now)


def _schedule(progress: float) -> float:
    """Return the learning rate as a share of its maximum, after a share `progress` of the steps."""
    return progress / WARM_UP if progress < WARM_UP else cosine((progress - WARM_UP) / (1 - WARM_UP))


def _batches(dataset: LabelDataset, settings: TrainSettings, step: int, loaders: int) -> Iterator[dict[str, Any]]:
    """Yield the batches of all steps after `step` over as many epochs as needed; incomplete batches are dropped."""
    workers = max(1, loaders)
    samples = [len(dataset) * (n + 1) // workers - len(dataset) * n // workers for n in range(workers)]
    batches_per_epoch = sum(count // settings.batch_size for count in samples)
    if batches_per_epoch == 0:
        raise SourceError(
            f"{len(dataset)} images for each of {dataset.world_size} workers with {workers} loaders are fewer than one "
            f"batch of {settings.batch_size}; use more images or a smaller --batch-size"
        )
    while step < settings.steps:
        epoch, done = divmod(step, batches_per_epoch)
        dataset.start_at(epoch, batches=done, batch_size=settings.batch_size)
        loader = DataLoader(
            dataset,
            batch_size=settings.batch_size,
            num_workers=loaders,
            drop_last=True,
            # fsspec filesystems that were used must not be forked
            multiprocessing_context="spawn" if loaders else None,
        )
        for batch in loader:
            yield batch
            step += 1
            if step == settings.steps:
                return
