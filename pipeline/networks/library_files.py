"""Weights and configurations of the networks of transformers: those that a training starts from, and those in MODEL.

Only safetensors are read, and no code of a repository is run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import nn
from transformers import SegformerForSemanticSegmentation
from transformers.utils import logging as transformers_logging

from pipeline.networks.library import (
    BACKBONES,
    DEFAULTS,
    MEAN,
    STD,
    LinearOnTokens,
    Segformer,
    build,
    config_of,
)
from pipeline.networks.size import check_size


def new_network(
    network: str, dimensions: int, class_names: Sequence[str], plain: Mapping[str, Any], weights: str | None
) -> nn.Module:
    """Return a network to be trained. Weights that no file has are drawn from torch's generator.

    Args:
        network: segformer or dinov2-linear.
        dimensions: D.
        class_names: Name of each output; empty if the outputs are no classes.
        plain: The values of its config.json; empty for those of the smallest published model.
        weights: Folder with the weights to start from, or None to draw all of them. The backbone of dinov2-linear then
            stays as it is, and only the linear layer is trained.

    Raises:
        ValueError: The configuration or the weights are of another kind of model.
    """
    names = dict(enumerate(class_names)) if class_names else {i: f"dimension {i}" for i in range(dimensions)}
    labels = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    config = config_of(network, plain or DEFAULTS[network], labels)
    if weights is None:
        return build(network, config, dimensions).train()
    if network == "segformer":
        options = {**labels, "ignore_mismatched_sizes": True}
        model = _pretrained(SegformerForSemanticSegmentation, weights, options, may_lack="decode_head.")
        return Segformer(model).train()
    kind = BACKBONES[config.model_type]
    return LinearOnTokens(_pretrained(kind.model, weights, kind.build), dimensions, frozen=True).train()


def _pretrained(model: Any, folder: str, options: Mapping[str, Any], *, may_lack: str | None = None) -> Any:
    """Load a model of transformers. Weights may be missing only if their names begin with `may_lack`."""
    try:
        with _quiet():
            loaded, report = model.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
            )
    except MemoryError:
        raise
    except Exception as error:  # a configuration with wrong values raises errors of any class while a model is built
        raise ValueError(f"{folder}: its files do not load: {error}") from error
    lacking = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if missing := sorted(name for name in lacking if may_lack is None or not name.startswith(may_lack)):
        raise ValueError(f"{folder}: its files lack weights: {missing[0]} is one of {len(missing)}")
    return loaded


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing progress bars, and tables of weights that are checked here."""
    level, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if has_bars:
            transformers_logging.enable_progress_bar()


def plain_config(network: nn.Module) -> dict[str, Any]:
    """Return what config.json holds of a network of transformers, from which `from_pretrained` can rebuild it."""
    assert isinstance(network, Segformer | LinearOnTokens)
    config: Any = network.model.config if isinstance(network, Segformer) else network.backbone.config
    own = {"architectures": ["SegformerForSemanticSegmentation"]} if isinstance(network, Segformer) else {}
    plain = json.loads(config.to_json_string(use_diff=False)) | own
    return {name: value for name, value in plain.items() if not name.startswith("_")}


def to_bytes(network: nn.Module) -> bytes:
    """Return the weights of a network as safetensors; those of SegFormer with the names that transformers writes."""
    if not isinstance(network, Segformer):
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        return save(tensors, {"format": "pt"})
    with tempfile.TemporaryDirectory() as folder, _quiet():
        network.model.save_pretrained(folder)
        return Path(folder, "model.safetensors").read_bytes()


def from_bytes(config: Mapping[str, Any], weights: bytes) -> nn.Module:
    """Return the trained network of a config.json and the content of its file of weights.

    Raises:
        ValueError: They do not fit each other, or are of another kind of network.
    """
    backbone, tensors = config_of(config["network"], config), load(weights)
    check_size(lambda: build(config["network"], backbone, config["dimensions"]), tensors)
    if config["network"] == "segformer":
        with tempfile.TemporaryDirectory() as folder:
            backbone.save_pretrained(folder)
            Path(folder, "model.safetensors").write_bytes(weights)
            return Segformer(_pretrained(SegformerForSemanticSegmentation, folder, {}))
    network = build(config["network"], backbone, config["dimensions"])
    network.load_state_dict(tensors)
    return network


def image_processor(size: int) -> dict[str, Any]:
    """Return preprocessor_config.json, by which transformers prepares images as the training did."""
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "do_reduce_labels": False,
    }
