"""The files of a trained network in MODEL: weights in model.safetensors, and what rebuilds the network in config.json.

The driver of a run imports this module too, but needs no network, so torch is imported in the functions that need it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from diffseg.segmentation import BACKGROUND
from pipeline.bounded_json import read_bounded, struct_fields
from pipeline.output.schemas import DOCUMENT_BYTES, parse_network, parse_object
from pipeline.readers.names import NameSettings
from pipeline.settings import LabelSettings
from pipeline.storage import SourceError, Storage

if TYPE_CHECKING:
    from torch import nn

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@contextmanager
def damage_named(model: Storage, path: str) -> Iterator[None]:
    """Turn the errors of a file whose content is not what this program writes into one that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SourceError(
            f"{model.joined(path)}: is damaged ({reason}). Choose another MODEL, or restore it"
        ) from error


def save_network(model: Storage, network: nn.Module, config: Mapping[str, Any]) -> None:
    """Write the trained network: first its weights, then the configuration to rebuild it.

    `SegformerForSemanticSegmentation.from_pretrained(MODEL)` reads a SegFormer too, and its image processor.
    """
    if config.get("network", "unet") in ("unet", "vit") or config.get("text_model"):
        from safetensors.torch import save

        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        model.write_bytes(WEIGHTS, save(weights))
    else:
        from pipeline.networks import library_files

        model.write_bytes(WEIGHTS, library_files.to_bytes(network))
        if config["network"] == "segformer":
            processor = json.dumps(library_files.image_processor(config["size"]), indent=1, sort_keys=True)
            model.write_bytes("preprocessor_config.json", processor.encode())
    model.write_bytes(CONFIG, json.dumps(dict(config), indent=1, sort_keys=True).encode())


def load_network(model: Storage, names: Sequence[str] = ()) -> tuple[nn.Module, dict[str, Any]]:
    """Return the trained network, on the CPU and in evaluation mode, and its configuration.

    Args:
        model: MODEL.
        names: Other names than those of the training, for a network whose classes are texts.

    Raises:
        SourceError: The training has not finished, or a file is damaged.
        ValueError: The network has fixed classes and other names are given, or its text encoder cannot be read.
    """
    from safetensors.torch import load

    config = load_config(model)
    if names:
        config["class_names"] = [BACKGROUND, *_checked_names(config, names)]
    with _training_finished(model):
        weights = model.read_bytes(WEIGHTS)
    network: nn.Module
    if config.get("text_model"):
        from pipeline.networks import text_networks

        text = text_networks.text_of(config)
        with damage_named(model, WEIGHTS):
            return text_networks.from_bytes(config, weights, text, config["class_names"][1:]).eval(), config
    with damage_named(model, WEIGHTS):
        if config["network"] == "unet":
            from pipeline.networks.unet import SegmentationNetwork

            network = SegmentationNetwork(width=config["width"], dimensions=config["dimensions"])
            network.load_state_dict(load(weights))
        elif config["network"] == "vit":
            from pipeline.networks import vit_files

            network = vit_files.from_bytes(config, weights)
        else:
            from pipeline.networks import library_files  # which imports transformers and takes seconds

            network = library_files.from_bytes(config, weights)
    return network.eval(), config


def load_config(model: Storage) -> dict[str, Any]:
    """Return the configuration of a trained network. Raises SourceError.

    `NetworkSchema` has the fields that all networks share; a network of transformers has those of its library too.
    """
    with _training_finished(model), damage_named(model, CONFIG):
        data = read_bounded(model, CONFIG, DOCUMENT_BYTES)
        shared = struct_fields(parse_network(data))
        for name in ("text_model", "text_sha256"):
            if shared[name] is None:
                del shared[name]  # so that run.json names them only for networks whose classes are texts
        if shared["network"] == "unet":
            return shared
        del shared["width"]  # which unet alone has
        return parse_object(data) | shared


def _checked_names(config: Mapping[str, Any], names: Sequence[str]) -> Sequence[str]:
    """Return the names that a network is to predict. Raises ValueError if its classes are fixed."""
    if "text_model" not in config and tuple(names) != tuple(config["class_names"][1:]):
        raise ValueError(
            "network: names its segments by the classes that it was trained on; leave out the names. Networks of the "
            "recipes denseclip and maskclip take any names"
        )
    return names


def network_sha256(model: Storage) -> str:
    """Return the SHA-256 of a trained network's weights, in hexadecimal. Raises SourceError."""
    with _training_finished(model):
        return hashlib.sha256(model.read_bytes(WEIGHTS)).hexdigest()


@contextmanager
def _training_finished(model: Storage) -> Iterator[None]:
    """Turn a missing file into an error that names MODEL."""
    try:
        yield
    except FileNotFoundError as error:
        raise SourceError(f"{model.redacted}: holds no trained network; pass the MODEL of `diffseg train`") from error


def with_network(settings: LabelSettings, store: Storage) -> LabelSettings:
    """Return the settings of a run with the names and the type of weights of the network that labels, if one does.

    Args:
        settings: The settings that the user gave.
        store: Options for the store of the network.

    Raises:
        SourceError: There is no trained network.
        ValueError: Names were given as well, and the network has fixed classes.
    """
    if settings.network is None:
        return settings
    model = store.at(settings.network)
    config, naming = load_config(model), settings.naming
    if naming and naming != NameSettings(names=naming.names):
        raise ValueError("network: all of its names are possible in every image; give --names alone, or nothing")
    names = _checked_names(config, naming.names) if naming else config["class_names"][1:]
    naming = dataclasses.replace(naming, names=tuple(names))
    return dataclasses.replace(settings, network=model.url, model=model.url, dtype="float32", naming=naming)
