"""The steps of a training, on one worker: the same with Ray and without, alone and with others.

Every random number of a step follows from (seed, step, rank), so a training that was killed goes on from its last
checkpoint to the weights of an undisturbed one.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from diffseg.optim import cosine, descend, optimiser_of, set_lr
from pipeline.storage import SourceError, Storage
from pipeline.training.dataset import LabelDataset
from pipeline.training.network import SegmentationNetwork
from pipeline.training.objective import objective
from pipeline.training.settings import TrainSettings
from pipeline.training.state import Record, load_checkpoint, save_checkpoint, save_network

DIMENSIONS = 16
"""Of an embedding: as many segments of an image can be told apart without any being alike."""

RECORDS = 100
"""Of a training: what its curves are drawn of."""

WARM_UP = 0.05


def train(
    settings: TrainSettings,
    dataset: LabelDataset,
    model: Storage,
    *,
    device: str | torch.device = "cpu",
    threads: int = 1,
    loaders: int = 0,
    save_every: int = 100,
    wrap: Callable[[SegmentationNetwork], nn.Module] = lambda network: network,
    on_record: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Make the steps that MODEL lacks; the records of all. The worker of rank 0 writes checkpoints and the network.

    wrap: makes the network one whose gradients are those of all workers. on_record: told each new record.
    Raises SourceError where the run has too few images for a batch of each worker.
    """
    torch.set_num_threads(threads)
    dimensions = DIMENSIONS if settings.target == "segments" else dataset.classes
    torch.manual_seed(settings.seed)
    network = SegmentationNetwork(width=settings.width, dimensions=dimensions).to(device)
    optimiser = optimiser_of(network)
    step, history = load_checkpoint(model, network, optimiser)
    wrapped = wrap(network)
    sums: defaultdict[str, Any] = defaultdict(float)
    count, started, every = 0, time.perf_counter(), max(1, settings.steps // RECORDS)
    for batch in _batches(dataset, settings, step, loaders):
        set_lr(optimiser, settings.learning_rate * _schedule(step / settings.steps))
        parts = objective(wrapped, batch, settings.target, device=device, seed=(settings.seed, step, dataset.rank))
        descend(parts["loss"], wrapped, optimiser)
        step, count = step + 1, count + 1
        for name, value in parts.items():
            sums[name] += value.detach()  # a GPU is not waited for
        if step % every == 0 or step == settings.steps:
            now = time.perf_counter()
            means = {name: float(total) / count for name, total in sums.items()}
            history.append({"step": step, "seconds": round(now - started, 3), **means})
            on_record(history[-1])
            sums.clear()
            count, started = 0, now
        if dataset.rank == 0 and (step % save_every == 0 or step == settings.steps):
            save_checkpoint(model, network, optimiser, step, history)
    if dataset.rank == 0:
        facts = {"target": settings.target, "width": settings.width, "dimensions": dimensions, "size": settings.size}
        save_network(model, network, facts)
    return history


def _schedule(through: float) -> float:
    return through / WARM_UP if through < WARM_UP else cosine((through - WARM_UP) / (1 - WARM_UP))


def _batches(dataset: LabelDataset, settings: TrainSettings, step: int, loaders: int) -> Iterator[dict[str, Any]]:
    """The batches of all steps after `step`, through as many epochs as they take; whole ones only."""
    workers = max(1, loaders)
    shares = [len(dataset) * (part + 1) // workers - len(dataset) * part // workers for part in range(workers)]
    in_epoch = sum(share // settings.batch_size for share in shares)
    if in_epoch == 0:
        raise SourceError(
            f"{len(dataset)} images for each of {dataset.world_size} workers, with {workers} loaders: fewer than one "
            f"batch of {settings.batch_size}; expected more images, or a smaller --batch-size"
        )
    while step < settings.steps:
        epoch, done = divmod(step, in_epoch)
        dataset.start_at(epoch, batches=done, batch_size=settings.batch_size)
        loader = DataLoader(
            dataset,
            batch_size=settings.batch_size,
            num_workers=loaders,
            drop_last=True,
            # A filesystem that was used must not be forked.
            multiprocessing_context="spawn" if loaders else None,
        )
        for batch in loader:
            yield batch
            step += 1
            if step == settings.steps:
                return
