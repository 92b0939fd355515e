"""Networks of transformers: their output and gradients, given weights, files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import SEGFORMER
from transformers import (
    AutoModelForSemanticSegmentation,
    Dinov2Config,
    Dinov2Model,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    ViTConfig,
    ViTModel,
)

from diffseg.model.layout import CheckpointError
from pipeline.networks.build import create_network
from pipeline.networks.files import load_network, save_network
from pipeline.networks.library import normalised
from pipeline.networks.onnx_export import to_onnx
from pipeline.storage import SourceError, Storage

PLAIN: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
DINOV2 = {"model_type": "dinov2", "image_size": 56, "patch_size": 14, **PLAIN}
REGISTERS = {**DINOV2, "model_type": "dinov2_with_registers", "num_register_tokens": 3}
VIT = {"model_type": "vit", "image_size": 32, "patch_size": 8, **PLAIN}

CASES = [
    ("segformer", SEGFORMER, (16, 16)),
    ("dinov2-linear", DINOV2, (5, 5)),
    ("dinov2-linear", REGISTERS, (5, 5)),
    ("dinov2-linear", VIT, (8, 8)),
]


def create(name: str, backbone: str | None, *, dimensions: int = 3, names: tuple[str, ...] = ()) -> Any:
    torch.manual_seed(0)
    return create_network(name, dimensions=dimensions, width=24, class_names=names, backbone=backbone)


def written(folder: Path, config: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder / "config.json")


@pytest.mark.parametrize(("name", "config", "grid"), CASES, ids=[str(case[1]["model_type"]) for case in CASES])
def test_a_network_from_scratch_learns_with_all_weights_and_is_read_back(
    name: str, config: dict[str, Any], grid: tuple[int, int], tmp_path: Path
) -> None:
    network, about = create(name, written(tmp_path, config))
    assert network.training
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    output = network(images)
    assert output.shape == (2, 3, *grid)
    output.square().mean().backward()
    without = [key for key, weight in network.named_parameters() if weight.requires_grad and weight.grad is None]
    assert without == [], "distributed training would wait for the gradients of these weights"
    model = Storage(url=str(tmp_path / "model"))
    save_network(model, network, about | {"target": "segments", "dimensions": 3, "size": 64, "class_names": ()})
    loaded, read = load_network(model)
    assert (read["network"], read["model_type"]) == (name, config["model_type"])
    assert not loaded.training
    with torch.inference_mode():
        assert torch.equal(loaded(images), network.eval()(images))


def test_a_trained_segformer_loads_in_plain_transformers(tmp_path: Path) -> None:
    names = ("background", "sky", "sea")
    network, about = create("segformer", written(tmp_path, SEGFORMER), names=names)
    config = about | {"target": "classes", "dimensions": 3, "size": 64, "class_names": names}
    save_network(Storage(url=str(tmp_path / "model")), network, config)
    loaded, report = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.id2label == dict(enumerate(names))
    assert isinstance(
        AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model"), SegformerForSemanticSegmentation
    )
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    prepared = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(prepared[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    pixels = ((images + 1) * 127.5 * prepared["rescale_factor"] - mean) / std
    torch.testing.assert_close(pixels, normalised(images))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(pixel_values=pixels).logits, network.eval()(images), atol=1e-5, rtol=1e-4)


def test_given_weights_of_a_segformer_are_kept_but_for_the_last_layer(tmp_path: Path) -> None:
    torch.manual_seed(1)
    given = SegformerForSemanticSegmentation(SegformerConfig(**{**SEGFORMER, "num_labels": 7}))
    given.save_pretrained(tmp_path / "given")
    network, about = create("segformer", str(tmp_path / "given"))
    assert network.training
    assert about["hidden_sizes"] == SEGFORMER["hidden_sizes"]
    ours, theirs = network.model.state_dict(), given.state_dict()
    assert ours.keys() == theirs.keys()
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed == {"decode_head.classifier.weight", "decode_head.classifier.bias"}
    again, _ = create("segformer", str(tmp_path / "given"))
    assert all(torch.equal(ours[name], weight) for name, weight in again.model.state_dict().items()), "the seed decides"


@pytest.mark.parametrize(
    "kind", [(Dinov2Model, Dinov2Config, DINOV2), (ViTModel, ViTConfig, VIT)], ids=["dinov2", "vit"]
)
def test_given_weights_of_a_plain_transformer_stay_as_they_are(kind: Any, tmp_path: Path) -> None:
    model, configuration, config = kind
    torch.manual_seed(1)
    given = model(configuration(**config))
    given.save_pretrained(tmp_path / "given")
    network, _ = create("dinov2-linear", str(tmp_path / "given"))
    assert not network.backbone.training
    assert {name for name, weight in network.named_parameters() if weight.requires_grad} == {"head.weight", "head.bias"}
    network(torch.rand(1, 3, 32, 32)).sum().backward()
    theirs = given.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in network.backbone.state_dict().items())


def test_other_backbones_are_refused_with_what_was_expected(tmp_path: Path) -> None:
    torch.manual_seed(1)
    given = tmp_path / "given"
    SegformerForSemanticSegmentation(SegformerConfig(**SEGFORMER)).save_pretrained(given)
    with pytest.raises(ValueError, match="model_type 'dinov2': the network segformer takes segformer"):
        create("segformer", written(tmp_path, DINOV2))
    with pytest.raises(ValueError, match="takes dinov2, dinov2_with_registers, vit"):
        create("dinov2-linear", written(tmp_path, SEGFORMER))
    with pytest.raises(ValueError, match="4000000 layers: expected at most 1000"):
        create("segformer", written(tmp_path, {**SEGFORMER, "depths": [10**6] * 4}))
    with pytest.raises(CheckpointError, match="no such file or folder"):
        create("segformer", str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="model_type 'segformer': the network dinov2-linear takes dinov2"):
        create("dinov2-linear", str(given))
    (given / "config.json").write_text(json.dumps({**SEGFORMER, "hidden_sizes": [8, 8, 16, 32]}))
    with pytest.raises(ValueError, match="its files lack weights"):
        create("segformer", str(given))
    (given / "model.safetensors").rename(given / "pytorch_model.bin")
    with pytest.raises(ValueError, match="Pickled weights are not read"):
        create("segformer", str(given))


def test_a_configuration_that_does_not_fit_the_weights_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    network, about = create("segformer", written(tmp_path, SEGFORMER))
    config = about | {"target": "segments", "dimensions": 3, "size": 64, "class_names": ()}
    model = Storage(url=str(tmp_path / "model"))
    save_network(model, network, config | {"hidden_sizes": [8, 8, 16, 2**14]})
    with pytest.raises(
        SourceError, match=r"config.json is of a network with 3,224,814,508 numbers, and the weights are"
    ):
        load_network(model)


@pytest.mark.parametrize(("name", "config"), [("segformer", SEGFORMER), ("dinov2-linear", DINOV2)])
def test_onnxruntime_gives_the_output_of_the_network(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network = create(name, written(tmp_path, config))[0].eval()
    session = onnxruntime.InferenceSession(to_onnx(network, {"size": 64, "class_names": [], "target": "segments"}))
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        (found,) = session.run(None, {"image": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), network(images), atol=1e-4, rtol=1e-4)
