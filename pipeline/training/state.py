"""The files of a training in MODEL.

train.json holds the settings. checkpoint.safetensors holds the complete training state in one file, so that after a
kill either the previous or the next state is there. model.safetensors and config.json hold the trained network.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from diffseg.safetensors_metadata import read_metadata
from pipeline.bounded_json import InvalidFile, read_bounded, struct_fields
from pipeline.output.ownership import refuse_foreign_folder
from pipeline.output.schemas import DOCUMENT_BYTES, TrainingSchema, parse_network, parse_object, parse_training
from pipeline.output.selection import RowSelection
from pipeline.storage import SourceError, Storage
from pipeline.training.network import SegmentationNetwork
from pipeline.training.settings import TrainSettings

CLAIM, CHECKPOINT, WEIGHTS, CONFIG = "train.json", "checkpoint.safetensors", "model.safetensors", "config.json"

Record = Mapping[str, float]
"""Progress of a training: `step`, the number of steps done; `seconds`, the time since the previous record; and the mean
of the loss, and of each of its parts, since then."""


def claim(
    model: Storage,
    settings: TrainSettings,
    *,
    fingerprint: str,
    workers: int,
    selection: RowSelection | None = None,
) -> None:
    """Start a training in MODEL, or verify that it continues the one that was started there.

    Args:
        model: MODEL.
        settings: Settings of the training.
        fingerprint: Fingerprint of the run whose labels are used.
        workers: Number of workers.
        selection: Rows of the run that are used; None for all of them.

    Raises:
        ValueError: MODEL holds a training with other settings, rows, another run or another number of workers.
    """
    plain = dataclasses.asdict(settings) | {"labels": fingerprint, "workers": workers}
    if selection not in (None, RowSelection()):
        plain["selection"] = selection.plain()
    refuse_foreign_folder(model, CLAIM)
    if model.create_bytes(CLAIM, json.dumps(plain, indent=1, sort_keys=True).encode()):
        return
    try:
        existing = parse_object(read_bounded(model, CLAIM, DOCUMENT_BYTES))
    except InvalidFile as error:
        raise ValueError(
            f"{model.joined(CLAIM)}: is not a record of a training ({error}). Choose another MODEL"
        ) from None
    if existing != plain:
        names = sorted(name for name in plain.keys() | existing.keys() if plain.get(name) != existing.get(name))
        changes = ", ".join(f"{name} was {existing.get(name)}, is now {plain.get(name)}" for name in names)
        raise ValueError(f"{model.redacted}: holds a training with other settings: {changes}. Choose another MODEL")


def save_checkpoint(
    model: Storage,
    network: SegmentationNetwork,
    optimiser: torch.optim.Optimizer,
    step: int,
    history: Sequence[Record],
) -> None:
    """Replace the checkpoint by the state after `step` steps."""
    tensors = {f"weights.{name}": tensor for name, tensor in network.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": tensor for name, tensor in state.items()}
    progress = {"step": step, "history": list(history)}
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    model.write_bytes(CHECKPOINT, save(contents, {"training": json.dumps(progress)}))


def load_checkpoint(
    model: Storage, network: SegmentationNetwork, optimiser: torch.optim.Optimizer
) -> tuple[int, list[Record]]:
    """Restore network and optimiser in place.

    Returns:
        The number of steps done and their records; 0 and [] if MODEL has no checkpoint.
    """
    if not model.exists(CHECKPOINT):
        return 0, []
    data = model.read_bytes(CHECKPOINT)
    weights: dict[str, torch.Tensor] = {}
    states: dict[int, dict[str, torch.Tensor]] = {}
    with _damage_named(model, CHECKPOINT):
        for name, tensor in load(data).items():
            kind, rest = name.split(".", 1)
            if kind == "weights":
                weights[rest] = tensor
            else:
                number, field = rest.split(".")
                states.setdefault(int(number), {})[field] = tensor
        network.load_state_dict(weights)
        optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
        progress = _progress(data)
    return progress.step, list(progress.history)


def load_history(model: Storage) -> list[Record]:
    """Return the records of a training up to its last checkpoint."""
    data = model.read_bytes(CHECKPOINT)
    with _damage_named(model, CHECKPOINT):
        return list(_progress(data).history)


def _progress(data: bytes) -> TrainingSchema:
    return parse_training(read_metadata(data)["training"])


@contextmanager
def _damage_named(model: Storage, path: str) -> Iterator[None]:
    """Turn the errors of a file whose content is not what this program writes into one that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SourceError(
            f"{model.joined(path)}: is damaged ({reason}). Choose another MODEL, or restore it"
        ) from error


def save_network(model: Storage, network: SegmentationNetwork, config: Mapping[str, Any]) -> None:
    """Write the trained network: first its weights, then the configuration to rebuild it."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    model.write_bytes(WEIGHTS, save(weights))
    model.write_bytes(CONFIG, json.dumps(dict(config), indent=1, sort_keys=True).encode())


def load_network(model: Storage) -> tuple[SegmentationNetwork, dict[str, Any]]:
    """Return the trained network, on the CPU, and its configuration.

    Raises:
        SourceError: The training has not finished.
    """
    try:
        with _damage_named(model, CONFIG):
            config = parse_network(read_bounded(model, CONFIG, DOCUMENT_BYTES))
        weights = model.read_bytes(WEIGHTS)
        with _damage_named(model, WEIGHTS):
            network = SegmentationNetwork(width=config.width, dimensions=config.dimensions)
            network.load_state_dict(load(weights))
    except FileNotFoundError as error:
        raise SourceError(f"{model.redacted}: holds no trained network; pass the MODEL of `diffseg train`") from error
    return network.eval(), struct_fields(config)
