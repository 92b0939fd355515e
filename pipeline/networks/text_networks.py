"""Networks whose classes are texts: what config.json says of them, and how they are rebuilt with any names.

MODEL holds everything that was trained. The frozen text encoder, and the architecture of a CLIP, are read from the
location in config.json; their digest must be the same as in the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import nn

from diffseg.clip.text_model import TextModel, load_text_model
from pipeline.networks.denseclip import DenseClip
from pipeline.networks.size import check_size
from pipeline.networks.text_classes import TextClasses, TextClassifier
from pipeline.networks.unet import SegmentationNetwork
from pipeline.networks.vit import ViTSegmenter
from pipeline.networks.vit_files import saved_config
from pipeline.storage import SourceError


def about_text(location: str, text: TextModel) -> dict[str, Any]:
    """Return what config.json holds of a text encoder. The path of a folder is made absolute."""
    folder = Path(location).expanduser()
    return {"text_model": str(folder.resolve()) if folder.is_dir() else location, "text_sha256": text.sha256}


def text_of(config: Mapping[str, Any]) -> TextModel:
    """Load the text encoder that a config.json names.

    Raises:
        CheckpointError: It cannot be loaded.
        SourceError: The text encoder at this location is not that of the training.
    """
    text = load_text_model(config["text_model"])
    if text.sha256 != config["text_sha256"]:
        raise SourceError(
            f"{config['text_model']}: has other files than in the training of the network, whose digest was "
            f"{config['text_sha256']} and is now {text.sha256}; restore them"
        )
    return text


def from_bytes(config: Mapping[str, Any], weights: bytes, text: TextModel, names: Sequence[str]) -> nn.Module:
    """Return the trained network of a config.json and the content of its file of weights, with these names.

    Raises:
        ValueError: They do not fit each other.
    """
    tensors = load(weights)
    check_size(lambda: _inner(config), tensors, is_part=True)
    network: nn.Module
    if config["network"] == "denseclip":
        network = DenseClip(text, names, width=config["width"])
    else:
        network = TextClassifier(_inner(config), TextClasses(text, names))
    network.load_state_dict(tensors)
    return network


def _inner(config: Mapping[str, Any]) -> nn.Module:
    """Return the part of the network that needs no text encoder or CLIP, with random weights."""
    if config["network"] in ("unet", "denseclip"):
        return SegmentationNetwork(width=config["width"], dimensions=config["dimensions"])
    if config["network"] == "vit":
        return ViTSegmenter(saved_config(config), config["dimensions"])
    from pipeline.networks import library  # which imports transformers and takes seconds

    return library.build(config["network"], library.config_of(config["network"], config), config["dimensions"])
