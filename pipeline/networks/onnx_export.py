"""A trained network as an ONNX file, for runtimes without torch."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

FILE = "model.onnx"


def check_onnx(recipe: str = "plain") -> None:
    """Raise ValueError if the package onnx is not installed, or if the networks of a recipe cannot be exported."""
    if recipe == "denseclip":
        raise ValueError("recipe denseclip: the exporter of torch fixes the number of images in its attention layers")
    if find_spec("onnx") is None:
        raise ValueError("writing an ONNX file needs the package onnx: pip install 'diffseg-pipeline[onnx]'")


def to_onnx(network: nn.Module, config: Mapping[str, Any]) -> bytes:
    """Return a trained network as an ONNX file.

    Its input `image` is float32 [B, 3, S, S] in [−1, 1] for any B. Its output is `scores`, the scores of D classes
    before the softmax, or `embedding`, float32 [B, D, h, w]. The metadata holds `target`, `size` (S) and `class_names`
    (a JSON list).

    Args:
        network: The network, on the CPU and in evaluation mode.
        config: Its config.json.
    """
    import onnx

    output = "scores" if config["target"] == "classes" else "embedding"
    # Two images: with one, the exporter may take the size of the batch for a constant.
    images = torch.zeros(2, 3, config["size"], config["size"])
    buffer: Any = io.BytesIO()  # which torch's annotations leave out
    with warnings.catch_warnings():
        # The exporter says that it is not the newest. The newest needs onnxscript and takes 25 times as long.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (images,),
            buffer,
            input_names=["image"],
            output_names=[output],
            dynamic_axes={"image": {0: "batch"}, output: {0: "batch"}},
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    about = {"target": config["target"], "size": str(config["size"]), "class_names": json.dumps(config["class_names"])}
    onnx.helper.set_model_props(model, about)
    return model.SerializeToString()
