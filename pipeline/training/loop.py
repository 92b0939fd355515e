"""The training loop of one worker. It is the same with and without Ray, for one worker and for many.

All random numbers of a step follow from (seed, step, rank), so a training that was killed and continues from its last
checkpoint ends with the same weights as an uninterrupted one. The samples of a step follow from (seed, step), whatever
the number of workers that share them.
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

from diffseg.optim import descend, set_lr
from pipeline.networks.files import save_network
from pipeline.storage import SourceError, Storage
from pipeline.training.dataset import LabelDataset
from pipeline.training.recipes import create_recipe
from pipeline.training.recipes.workers import place, total
from pipeline.training.settings import TrainRunSettings, TrainSettings
from pipeline.training.state import Record, load_checkpoint, save_checkpoint

RECORDS = 100
"""Number of progress records of a training; its curves are drawn from them."""


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
    torch.manual_seed(settings.seed)
    recipe = create_recipe(settings, dataset.class_names)
    network = recipe.network.to(device)
    optimiser = recipe.optimiser()
    step, history = load_checkpoint(model, network, optimiser)
    wrapped = wrap(network)
    recorder = _Recorder(settings, history, on_record)
    for batch in _batches(dataset, settings, step, run.loaders):
        torch.manual_seed(_seed_of_step(settings.seed, step, dataset.rank))  # for dropout
        set_lr(optimiser, settings.learning_rate * recipe.learning_rate(step / settings.steps))
        seed = (settings.seed, step, dataset.rank)
        losses = recipe.losses(wrapped, batch, step=step, seed=seed, device=device)
        descend(losses["loss"], wrapped, optimiser)
        step += 1
        recorder.add(step, losses)
        if dataset.rank == 0 and (step % run.save_every == 0 or step == settings.steps):
            save_checkpoint(model, network, optimiser, step, history)
    if dataset.rank == 0:
        save_network(model, recipe.trained(), recipe.config)
    return history


def _seed_of_step(*numbers: int) -> int:
    """Return a seed that follows from the seed of the training, the step and the rank."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class _Recorder:
    """Appends the mean losses of every few steps, over all workers, to the history."""

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
            sums = total(torch.stack(list(self._sums.values()))) / place()[1]
            means = {name: float(value) / self._count for name, value in zip(self._sums, sums, strict=True)}
            self._history.append({"step": step, "seconds": round(now - self._started, 3), **means})
            self._on_record(self._history[-1])
            self._reset(now)


def _batches(dataset: LabelDataset, settings: TrainSettings, step: int, loaders: int) -> Iterator[dict[str, Any]]:
    """Yield the batches of all steps after `step` over as many epochs as needed; incomplete batches are dropped.

    The samples of a step over all workers do not depend on their number, only on the product with the batch size.
    """
    parts, images = max(1, loaders), settings.batch_size * dataset.world_size
    samples = [dataset.rows * (n + 1) // parts - dataset.rows * n // parts for n in range(parts)]
    batches_per_epoch = sum(count // images for count in samples)
    if batches_per_epoch == 0:
        raise SourceError(
            f"{dataset.rows} images for {parts} loaders are fewer than one batch of {settings.batch_size} on each of "
            f"{dataset.world_size} workers; use more images or a smaller --batch-size"
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
