"""The files of a training in MODEL.

train.json holds the settings. checkpoint.safetensors holds the complete training state in one file, so that after a
kill either the previous or the next state is there. `pipeline.networks.files` writes the trained network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load, save
from torch import nn

from diffseg.safetensors_metadata import read_metadata
from pipeline.bounded_json import InvalidFile, read_bounded
from pipeline.networks.files import damage_named
from pipeline.output.ownership import refuse_foreign_folder
from pipeline.output.schemas import DOCUMENT_BYTES, TrainingSchema, parse_object, parse_training
from pipeline.output.selection import RowSelection
from pipeline.storage import Storage
from pipeline.training.settings import TrainSettings

CLAIM, CHECKPOINT = "train.json", "checkpoint.safetensors"

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
    plain = settings.plain() | {"labels": fingerprint, "workers": workers}
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
    network: nn.Module,
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


def load_checkpoint(model: Storage, network: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[int, list[Record]]:
    """Restore network and optimiser in place.

    Returns:
        The number of steps done and their records; 0 and [] if MODEL has no checkpoint.
    """
    if not model.exists(CHECKPOINT):
        return 0, []
    data = model.read_bytes(CHECKPOINT)
    weights: dict[str, torch.Tensor] = {}
    states: dict[int, dict[str, torch.Tensor]] = {}
    with damage_named(model, CHECKPOINT):
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
    with damage_named(model, CHECKPOINT):
        return list(_progress(data).history)


def _progress(data: bytes) -> TrainingSchema:
    return parse_training(read_metadata(data)["training"])
