"""A trained network as an ONNX file gives the same output in onnxruntime, for any number of images."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from diffseg.clip.text_model import load_text_model
from pipeline.networks.onnx_export import check_onnx, to_onnx
from pipeline.networks.text_classes import TextClasses, TextClassifier
from pipeline.networks.unet import SegmentationNetwork

onnxruntime = pytest.importorskip("onnxruntime")

CONFIG: dict[str, Any] = {"size": 32, "class_names": ["background", "sky"], "target": "classes"}


@pytest.mark.parametrize(("target", "output"), [("classes", "scores"), ("segments", "embedding")])
def test_onnxruntime_gives_the_output_of_the_network(target: str, output: str) -> None:
    torch.manual_seed(0)
    network = SegmentationNetwork(width=8, dimensions=2).eval()
    session = onnxruntime.InferenceSession(to_onnx(network, {**CONFIG, "target": target}))
    about = session.get_modelmeta().custom_metadata_map
    assert (about["target"], about["size"]) == (target, "32")
    assert json.loads(about["class_names"]) == CONFIG["class_names"]
    for count in (1, 3):
        images = torch.rand(count, 3, 32, 32) * 2 - 1
        (found,) = session.run([output], {"image": images.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(found, network(images).numpy(), atol=1e-4)


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_onnx()
    monkeypatch.setattr("pipeline.networks.onnx_export.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'diffseg-pipeline\[onnx\]'"):
        check_onnx()


def test_a_classifier_of_texts_is_exported_with_its_names_and_denseclip_is_refused() -> None:
    torch.manual_seed(0)
    classes = TextClasses(load_text_model("tiny-text"), ("sky",))
    network = TextClassifier(SegmentationNetwork(width=8, dimensions=classes.dimensions), classes).eval()
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    (found,) = onnxruntime.InferenceSession(to_onnx(network, CONFIG)).run(None, {"image": images.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(found, network(images).numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="recipe denseclip"):
        check_onnx("denseclip")
