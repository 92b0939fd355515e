"""What a training leaves in MODEL, and goes on from.

train.json says what was asked for; checkpoint.safetensors is the whole state, in one file, so that a kill leaves one
state or the next; model.safetensors and config.json are the trained network.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load, save

from pipeline.storage import SourceError, Storage
from pipeline.training.network import SegmentationNetwork
from pipeline.training.settings import TrainSettings

CLAIM, CHECKPOINT, WEIGHTS, CONFIG = "train.json", "checkpoint.safetensors", "model.safetensors", "config.json"

Record = Mapping[str, float]
"""step: steps done; seconds: of the steps since the record before; means of the loss and its parts over them."""


def claim(model: Storage, settings: TrainSettings, *, fingerprint: str, workers: int) -> None:
    """Begin a training in MODEL, or go on with the one that was begun there.

    Raises ValueError, naming what differs, where that one has other settings, another run or other workers.
    """
    plain = dataclasses.asdict(settings) | {"labels": fingerprint, "workers": workers}
    if model.create_bytes(CLAIM, json.dumps(plain, indent=1, sort_keys=True).encode()):
        return
    found = json.loads(model.read_bytes(CLAIM))
    if found != plain:
        names = sorted(name for name in plain.keys() | found.keys() if plain.get(name) != found.get(name))
        told = ", ".join(f"{name} {found.get(name)} there, {plain.get(name)} here" for name in names)
        raise ValueError(f"{model.redacted}: holds a training with other settings: {told}. Name another MODEL")


def save_checkpoint(
    model: Storage,
    network: SegmentationNetwork,
    optimiser: torch.optim.Optimizer,
    step: int,
    history: Sequence[Record],
) -> None:
    """Write the state after `step` steps over the one before."""
    tensors = {f"weights.{name}": tensor for name, tensor in network.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": tensor for name, tensor in state.items()}
    facts = {"step": step, "history": list(history)}
    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    model.write_bytes(CHECKPOINT, save(contents, {"training": json.dumps(facts)}))


def load_checkpoint(
    model: Storage, network: SegmentationNetwork, optimiser: torch.optim.Optimizer
) -> tuple[int, list[Record]]:
    """Restore both in place; the steps done and their records, 0 and [] where nothing was saved."""
    if not model.exists(CHECKPOINT):
        return 0, []
    data = model.read_bytes(CHECKPOINT)
    weights: dict[str, torch.Tensor] = {}
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in load(data).items():
        kind, rest = name.split(".", 1)
        if kind == "weights":
            weights[rest] = tensor
        else:
            number, field = rest.split(".")
            states.setdefault(int(number), {})[field] = tensor
    network.load_state_dict(weights)
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    facts = _facts(data)
    return facts["step"], facts["history"]


def load_history(model: Storage) -> list[Record]:
    """The records of a training, as of its last checkpoint."""
    return _facts(model.read_bytes(CHECKPOINT))["history"]


def _facts(data: bytes) -> dict[str, Any]:
    """From the texts in a safetensors header, which its library reads from files alone."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["training"])


def save_network(model: Storage, network: SegmentationNetwork, config: Mapping[str, Any]) -> None:
    """The trained network: its weights, then what it takes to build it again."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    model.write_bytes(WEIGHTS, save(weights))
    model.write_bytes(CONFIG, json.dumps(dict(config), indent=1, sort_keys=True).encode())


def load_network(model: Storage) -> tuple[SegmentationNetwork, dict[str, Any]]:
    """The trained network, on the CPU, and its config. Raises SourceError where the training has not ended."""
    try:
        config = json.loads(model.read_bytes(CONFIG))
        network = SegmentationNetwork(width=config["width"], dimensions=config["dimensions"])
        network.load_state_dict(load(model.read_bytes(WEIGHTS)))
    except FileNotFoundError as error:
        raise SourceError(f"{model.redacted}: holds no trained network; name the MODEL of `diffseg train`") from error
    return network.eval(), config
