"""The network that is trained: one of this program, or one of transformers, with or without given weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg.model.files import ModelFiles, Part
from diffseg.model.layout import read_json, resolve

if TYPE_CHECKING:
    from torch import nn

BACKBONE_FILES = ModelFiles(
    library="transformers",
    parts=(Part(files=("config.json", "preprocessor_config.json"), weights="model"),),
    main_folders=("",),
)
"""The files that are read from a model of transformers or timm: its configurations, and safetensors."""


def create_network(
    name: str, *, dimensions: int, width: int, class_names: Sequence[str] = (), backbone: str | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network to be trained, and what config.json says to rebuild it.

    Weights that no file has are drawn from torch's generator.

    Args:
        name: unet, segformer, dinov2-linear or vit.
        dimensions: Number of outputs at each position.
        width: Channels of the finest level of unet.
        class_names: Name of each output; empty if the outputs are no classes.
        backbone: Folder or hub id of weights, or the path of a config.json; None for the smallest published
            configuration. Without weights, all of them are drawn.

    Raises:
        ValueError: The backbone is missing or of another kind; its message names it.
    """
    if name == "unet":
        from pipeline.networks.unet import SegmentationNetwork

        return SegmentationNetwork(width=width, dimensions=dimensions), {"width": width}
    plain, weights = ({}, None) if backbone is None else find_backbone(backbone)

    if name == "vit":
        from pipeline.networks.vit_files import new_vit

        return new_vit(plain, weights, dimensions)

    from pipeline.networks import library_files  # which imports transformers and takes seconds

    network = library_files.new_network(name, dimensions, class_names, plain, weights)
    return network, {**library_files.plain_config(network), "network": name}


def find_backbone(location: str) -> tuple[dict[str, Any], str | None]:
    """Return the configuration that a user named, and the folder of weights or None.

    Args:
        location: Folder or hub id of weights in the layout of transformers, or the path of a config.json.

    Raises:
        ValueError: There is no such folder, repository or file, or it has no safetensors.
    """
    if location.endswith(".json"):
        return read_json(Path(location).expanduser()), None
    folder = resolve(location, files=BACKBONE_FILES)
    names = [path.name for path in folder.glob("*")]
    if "config.json" not in names or not BACKBONE_FILES.part("").has_weights(names):
        raise ValueError(
            f"{location}: expected config.json and model.safetensors in the layout of transformers; found "
            f"{', '.join(sorted(names)[:10]) or 'nothing'}. Pickled weights are not read: load them in "
            "transformers and write them with save_pretrained"
        )
    return read_json(folder / "config.json"), str(folder)
